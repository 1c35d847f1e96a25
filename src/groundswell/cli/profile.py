"""The profile: where the gateway is and the key for it, kept in a file that only its owner can read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from groundswell.model.errors import NotFound, Unprocessable


@dataclass(frozen=True, slots=True)
class Profile:
    """``base_url`` has no path (``http://127.0.0.1:8787``); ``api_key`` is a key with every scope."""

    base_url: str
    api_key: str


def profile_path(data_dir: Path) -> Path:
    """The profile lies beside the gateway's own data."""
    return data_dir / "profile.json"


def save_profile(data_dir: Path, profile: Profile) -> None:
    """Write the profile with mode 0600 from its first byte on, replacing the old one at once."""
    path = profile_path(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(profile), file)
    partial.replace(path)


def load_profile(data_dir: Path) -> Profile | None:
    """The profile, or None where there is none yet. Raises ``Unprocessable`` when it cannot be read."""
    path = profile_path(data_dir)
    try:
        values = json.loads(path.read_text())
        return Profile(str(values["base_url"]), str(values["api_key"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Unprocessable(
            f"The profile {path} is damaged. Delete it and start `groundswell up` again.",
            code="profile_damaged",
        ) from error


def need_profile(data_dir: Path) -> Profile:
    """The profile to talk to the gateway with; GROUNDSWELL_URL and GROUNDSWELL_API_KEY win over the file.

    Raises ``NotFound`` with what to do when there is neither."""
    saved = load_profile(data_dir)
    base_url = os.environ.get("GROUNDSWELL_URL") or (saved.base_url if saved else "")
    api_key = os.environ.get("GROUNDSWELL_API_KEY") or (saved.api_key if saved else "")
    if not base_url or not api_key:
        raise NotFound(
            "No gateway is known here. Start one with `groundswell up`, or set GROUNDSWELL_URL and "
            "GROUNDSWELL_API_KEY to use another machine's.",
            code="no_profile",
        )
    return Profile(base_url.rstrip("/").removesuffix("/v1"), api_key)
