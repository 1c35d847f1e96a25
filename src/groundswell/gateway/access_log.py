"""The access log: one line for each answered request, written in groups.

A write for each line would cost more than the rest of the request's book-keeping, so lines wait for up to
``FLUSH_S`` and go out together. A kill may cost the lines of that time; what must survive is in the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from groundswell.gateway.pipeline import Seen

FLUSH_S = 0.1
GROUP_ROWS_MAX = 200  # So that formatting a group holds the loop for a few milliseconds at most.

_log = logging.getLogger("groundswell.access")


class AccessLog:
    """Takes what was seen; ``flush`` it at the end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rows: list[tuple[float, dict[str, Any]]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, seen: Seen) -> None:
        if not _log.isEnabledFor(logging.INFO):
            return
        self._rows.append((time.time(), _fields(seen)))
        if len(self._rows) >= GROUP_ROWS_MAX:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rows, self._rows = self._rows, []
        if rows:
            _log.info("request", extra={"rows": rows})


def _fields(seen: Seen) -> dict[str, Any]:
    return {
        "request_id": seen.request_id, "method": seen.method, "route": seen.route, "status": seen.status,
        "seconds": round(seen.seconds, 4), "tenant": seen.tenant, "key_id": seen.key_id, "code": seen.code,
    }  # fmt: skip
