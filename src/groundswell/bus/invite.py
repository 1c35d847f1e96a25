"""What a machine's owner copies from one screen to another: where to go, whom to trust, what to show."""

from __future__ import annotations

import base64
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from groundswell.model.errors import BadRequest
from groundswell.model.node import NAME

PREFIX: Final = "gsw_join_"


class Invite(msgspec.Struct, frozen=True, array_like=True):
    """``fingerprint`` is the SHA-256 of the server's certificate, so that no other is trusted."""

    host: Annotated[str, Meta(min_length=1, max_length=255)]
    port: Annotated[int, Meta(ge=1, le=65535)]
    node_id: Annotated[str, Meta(pattern=f"^{NAME}$")]
    secret: Annotated[bytes, Meta(min_length=16, max_length=16)]
    fingerprint: Annotated[bytes, Meta(min_length=32, max_length=32)]

    def text(self) -> str:
        return PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")


def read(text: str) -> Invite:
    """Raises ``BadRequest`` (``invalid_invite``) for anything else."""
    data = text.strip()
    try:
        if not data.startswith(PREFIX):
            raise ValueError
        data = data.removeprefix(PREFIX)
        return msgspec.msgpack.decode(base64.urlsafe_b64decode(data + "=" * (-len(data) % 4)), type=Invite)
    except (ValueError, msgspec.MsgspecError):
        raise BadRequest(
            "This is no invite, or not all of it; `groundswell invite` prints one.", code="invalid_invite"
        ) from None
