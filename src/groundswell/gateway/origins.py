"""Which web pages may call this server: a browser names the page's origin and obeys the answer (CORS).

A key travels in a header that a page has to set itself, never in a cookie, so that what is allowed here gives
nothing to a page that has no key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from groundswell.gateway.errors import Headers
from groundswell.model.errors import Forbidden

PREFLIGHT_KEPT_S = 600  # How long a browser may go without asking again; no browser keeps it above two hours.
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9_, -]{1,2048}\Z")
# What a program on a page may read besides the body: what to tell us when asking for help, when to come back.
_READABLE = b"x-request-id, retry-after, retry-after-ms, x-should-retry, openai-processing-ms"


class Origins:
    """``allowed`` are origins as browsers write them (``https://app.example``), or ``*`` for any."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(allowed)
        self._any = "*" in self._allowed

    def check(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Raises ``Forbidden`` when a page that is neither ours nor allowed is about to change something."""
        origin = headers.get(b"origin")
        if origin is None or method in ("GET", "HEAD", "OPTIONS") or self._is_allowed(origin):
            return
        host = headers.get(b"host", b"")
        if origin not in (b"http://" + host, b"https://" + host):
            raise _refused()

    def readable(self, headers: Mapping[bytes, bytes]) -> Headers:
        """What an answer carries so that an allowed page can read it; nothing for everybody else."""
        origin = headers.get(b"origin")
        if origin is None or not self._is_allowed(origin):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _READABLE),
            (b"vary", b"origin"),
        ]

    def preflight(self, method: str, headers: Mapping[bytes, bytes]) -> Headers | None:
        """The answer to a browser that asks before it sends a page's request; None if it asks no such thing.

        Raises ``Forbidden`` for a page that is not allowed."""
        if method != "OPTIONS" or b"access-control-request-method" not in headers or b"origin" not in headers:
            return None
        lines = self.readable(headers)
        if not lines:
            raise _refused()
        # Which methods and headers a path takes is for the path to say, when the request itself comes.
        asked = headers.get(b"access-control-request-headers", b"")
        if _HEADER_NAMES.match(asked):
            lines.append((b"access-control-allow-headers", asked))
        lines.append((b"access-control-allow-methods", b"GET, POST, DELETE"))
        lines.append((b"access-control-max-age", b"%d" % PREFLIGHT_KEPT_S))
        return lines

    def _is_allowed(self, origin: bytes) -> bool:
        return self._any or origin.decode("latin-1") in self._allowed


def _refused() -> Forbidden:
    return Forbidden(
        "Pages of this origin may not call this server. Its operator can allow it: gateway.allowed_origins.",
        code="origin_not_allowed",
    )
