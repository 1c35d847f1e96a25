"""The command line's way to a gateway: plain HTTP with the profile's key, errors in words.

httpx is imported where it is used: `up`, `gateway` and the help texts do without, and start the sooner.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from groundswell.cli.profile import Profile
from groundswell.model.errors import GroundswellError, UpstreamError

if TYPE_CHECKING:
    import httpx


class AnswerError(GroundswellError):
    """The gateway answered with an error; its message is meant for the person who reads it."""


def _raise_for(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), str(error.get("code") or "error")
    except (ValueError, KeyError, TypeError):
        message, code = f"HTTP {response.status_code} without an explanation", "upstream_error"
    raise AnswerError(f"{message} ({code}, request {response.headers.get('x-request-id', '?')})", code=code)


class Client:
    """A synchronous client.

    Raises ``AnswerError`` for an error answer, ``UpstreamError`` when nothing answers."""

    def __init__(self, profile: Profile) -> None:
        import httpx

        self.base_url = profile.base_url
        self._http = httpx.Client(
            base_url=profile.base_url,
            headers={"authorization": f"Bearer {profile.api_key}"},
            timeout=httpx.Timeout(60.0, connect=5.0, read=600.0),
            # The profile's gateway is named by address; a proxy of the environment must not see the key.
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TransportError as error:
            raise UpstreamError(
                f"No gateway answers at {self.base_url} ({type(error).__name__}). "
                "Is `groundswell up` running?",
                code="gateway_unreachable",
            ) from error

    def call(self, method: str, path: str, **options: Any) -> Any:
        """One request, its JSON answer."""
        with self._reachable():
            response = self._http.request(method, path, **options)
        _raise_for(response)
        return response.json() if response.content else None

    def upload(self, path: str, file: IO[bytes], size: int, headers: dict[str, str], progress: Any) -> Any:
        """POST a file as the body; ``progress(bytes so far)`` is called as it goes."""

        def chunks() -> Iterator[bytes]:
            sent = 0
            while chunk := file.read(256 * 1024):
                yield chunk
                sent += len(chunk)
                progress(sent)

        with self._reachable():
            response = self._http.post(
                path, content=chunks(), headers={"content-length": str(size), **headers}
            )
        _raise_for(response)
        return response.json()

    def download(self, path: str, target: Path) -> int:
        """GET a file; its size. The file appears whole or not at all."""
        partial = target.with_name(target.name + ".partial")
        with self._reachable(), self._http.stream("GET", path) as response:
            _raise_for(response)
            with partial.open("wb") as file:
                for chunk in response.iter_bytes(256 * 1024):
                    file.write(chunk)
        partial.replace(target)
        return target.stat().st_size

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """POST and yield the JSON of each server-sent event until ``[DONE]``; an error event is raised."""
        with self._reachable(), self._http.stream("POST", path, json=body) as response:
            _raise_for(response)
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise AnswerError(str(event["error"]["message"]), code=str(event["error"].get("code")))
                yield event
