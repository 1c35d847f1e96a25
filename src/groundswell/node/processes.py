"""An engine as a child process: started, watched, and gone for certain when it has to go.

Each one leads a session of its own, so that a signal reaches all that it started, and is told whose child it
is, so that it ends by itself when its node is killed (``engines.server`` sees to that).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from groundswell.engines.server import PARENT_VARIABLE
from groundswell.model.errors import UpstreamError

_log = logging.getLogger(__name__)

LISTENING = re.compile(rb"\blistening (?:on )?(?:http://)?127\.0\.0\.1:(\d{1,5})\b")
LINE_BYTES_MAX = 8 << 10  # Longer lines are cut; an engine's log is for reading.
LINES_READ_MAX = 1000  # Of one read of a pipe: a flood is not worth the event loop's time.
LINES_KEPT = 50  # The end of its log, for the message that says why it died.
LISTEN_TIMEOUT_S = 120.0  # A model is loaded before its server listens.
STOP_GRACE_S = 5.0
LOG_GRACE_S = 0.2


class EngineProcess:
    """One run of an engine's program. It is started once; a restart is a new one.

    ``argv`` is the program; it must print ``listening 127.0.0.1:PORT`` when it listens. From then on
    ``on_exit`` hears its exit status (negative: the signal), once, however it ended.
    """

    def __init__(self, engine_id: str, argv: Sequence[str], on_exit: Callable[[int], None]) -> None:
        self.engine_id = engine_id
        self.pid = 0
        self._argv = list(argv)
        self._on_exit = on_exit
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._port: asyncio.Future[int] | None = None
        self._transport: asyncio.SubprocessTransport | None = None
        self._ended = asyncio.Event()

    async def start(self, timeout_s: float = LISTEN_TIMEOUT_S) -> int:
        """Start it and wait until it listens; its port.

        Raises ``UpstreamError`` when it cannot be started, ends first, or takes too long; it is gone then."""
        loop = asyncio.get_running_loop()
        self._port = loop.create_future()
        try:
            await loop.subprocess_exec(
                lambda: _Pipes(self),
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
            )
        except OSError as error:
            raise UpstreamError(f"engine {self.engine_id} cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._port)
        except TimeoutError:
            await self.stop(0.0)
            raise UpstreamError(
                f"engine {self.engine_id} did not listen within {timeout_s:g} s{self._why()}"
            ) from None
        except asyncio.CancelledError:
            await self.stop(0.0)
            raise

    @property
    def alive(self) -> bool:
        """Whether it has been started and has not ended."""
        return self.pid != 0

    @property
    def log_tail(self) -> str:
        """The last lines that it wrote. For operators, never for clients."""
        return "\n".join(self._lines)

    async def ends_within(self, timeout_s: float) -> bool:
        """Wait so long for it to end by itself; whether it has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        return self._ended.is_set()

    def kill(self) -> None:
        """SIGKILL to all of it, now. A stopped process dies of this, too."""
        self._signal(signal.SIGKILL)

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Ask it to end, then make it; returns when it is gone. Idempotent."""
        if self._transport is None:
            return
        try:
            if grace_s > 0 and self.alive:
                self._signal(signal.SIGTERM)
                await self.ends_within(grace_s)
        finally:
            self.kill()
        await self._ended.wait()

    # --- what its pipes tell ---

    def began(self, transport: asyncio.SubprocessTransport) -> None:
        self._transport = transport
        self.pid = transport.get_pid()

    def exited(self) -> None:
        """It ended: clear away what it started and left behind, which holds the pipes open as well."""
        self.kill()
        self.pid = 0
        # A stray child in a session of its own is out of our reach; its pipe is not waited for.
        asyncio.get_running_loop().call_later(LOG_GRACE_S, self._close)

    def closed(self) -> None:
        """It ended and everything that it wrote was read."""
        assert self._port is not None
        assert self._transport is not None
        status = self._transport.get_returncode() or 0
        self._transport.close()
        self._ended.set()
        if self._port.done():
            self._on_exit(status)
            return
        self._port.set_exception(
            UpstreamError(f"engine {self.engine_id} {_how(status)} before it listened{self._why()}")
        )
        self._port.exception()  # Nobody may be waiting for it any more.

    def wrote(self, line: bytes) -> None:
        if self._port is not None and not self._port.done():
            found = LISTENING.search(line)
            if found is not None:
                self._port.set_result(int(found[1]))
        text = line.decode(errors="replace").strip()
        if text:
            self._lines.append(text)
            _log.debug("engine log", extra={"engine_id": self.engine_id, "line": text})

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _signal(self, number: signal.Signals) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # All of it is gone.
                os.killpg(self.pid, number)

    def _why(self) -> str:
        return f": {self._lines[-1]}" if self._lines else ""


class _Pipes(asyncio.SubprocessProtocol):
    """Cuts what a process writes into lines. asyncio's own Process hears of its end only after its pipes'."""

    def __init__(self, process: EngineProcess) -> None:
        self._process = process
        self._rest: dict[int, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._process.began(cast(asyncio.SubprocessTransport, transport))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, rest = (self._rest.pop(fd, b"") + data).split(b"\n")
        for line in lines[-LINES_READ_MAX:]:
            self._process.wrote(line[:LINE_BYTES_MAX])
        self._rest[fd] = rest[:LINE_BYTES_MAX]

    def process_exited(self) -> None:
        self._process.exited()

    def connection_lost(self, exc: Exception | None) -> None:
        for rest in self._rest.values():
            self._process.wrote(rest)
        self._process.closed()


def _how(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
