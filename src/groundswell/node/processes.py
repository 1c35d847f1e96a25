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

from groundswell.engines.server import PARENT_VARIABLE
from groundswell.model.errors import UpstreamError

_log = logging.getLogger(__name__)

LISTENING = re.compile(rb"\blistening (?:on )?(?:http://)?127\.0\.0\.1:(\d{1,5})\b")
LINE_BYTES_MAX = 8 << 10  # Longer lines are cut; an engine's log is for reading.
LINES_KEPT = 50  # The end of its log, for the message that says why it died.
LISTEN_TIMEOUT_S = 120.0  # A model is loaded before its server listens.
STOP_GRACE_S = 5.0
LOG_GRACE_S = 0.2


class EngineProcess:
    """One run of an engine's program. It is started once; a restart is a new one.

    ``argv`` is the program; it must print ``listening 127.0.0.1:PORT`` on its standard output when it
    listens. From then on ``on_exit`` hears its exit status (negative: the signal), once, however it ended.
    """

    def __init__(
        self,
        engine_id: str,
        argv: Sequence[str],
        on_exit: Callable[[int], None],
    ) -> None:
        self.engine_id = engine_id
        self.pid = 0
        self._argv = list(argv)
        self._on_exit = on_exit
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._port: asyncio.Future[int] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self, timeout_s: float = LISTEN_TIMEOUT_S) -> int:
        """Start it and wait until it listens; its port.

        Raises ``UpstreamError`` when it cannot be started, ends first, or takes too long; it is gone then."""
        self._port = asyncio.get_running_loop().create_future()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
                limit=LINE_BYTES_MAX,
            )
        except OSError as error:
            raise UpstreamError(f"engine {self.engine_id} cannot be started: {error.strerror}") from error
        self.pid = self._process.pid
        self._watcher = asyncio.create_task(self._watch(self._process))
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
        return self._process is not None and self._process.returncode is None

    @property
    def log_tail(self) -> str:
        """The last lines that it wrote. For operators, never for clients."""
        return "\n".join(self._lines)

    async def ends_within(self, timeout_s: float) -> bool:
        """Wait so long for it to end by itself; whether it has."""
        if self._watcher is not None:
            await asyncio.wait([self._watcher], timeout=timeout_s)
        return not self.alive

    def kill(self) -> None:
        """SIGKILL to all of it, now. A stopped process dies of this, too."""
        self._signal(signal.SIGKILL)

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Ask it to end, then make it; returns when it is gone. Idempotent."""
        if self._watcher is None:
            return
        try:
            if grace_s > 0 and self.alive:
                self._signal(signal.SIGTERM)
                await asyncio.wait([self._watcher], timeout=grace_s)
        finally:
            self.kill()
        await asyncio.wait([self._watcher])

    def _signal(self, number: signal.Signals) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # All of it is gone.
                os.killpg(self.pid, number)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Read what it writes until it ends, then clear away what it left."""
        assert process.stdout is not None
        assert process.stderr is not None
        readers = asyncio.gather(self._read(process.stdout), self._read(process.stderr))
        status = await process.wait()
        self.kill()  # What it started and did not end; it holds the pipes open as well.
        self.pid = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOG_GRACE_S):  # A stray child in a session of its own may hold a pipe.
                await readers
        assert self._port is not None
        if not self._port.done():
            self._port.set_exception(
                UpstreamError(f"engine {self.engine_id} {_how(status)} before it listened{self._why()}")
            )
            self._port.exception()  # Nobody may be waiting for it any more.
        else:
            self._on_exit(status)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readuntil(b"\n")
            except asyncio.LimitOverrunError:
                line = await stream.read(LINE_BYTES_MAX)
            except asyncio.IncompleteReadError as error:
                line = error.partial
                if not line:
                    return
            self._heard(line)

    def _heard(self, line: bytes) -> None:
        if self._port is not None and not self._port.done():
            found = LISTENING.search(line)
            if found is not None:
                self._port.set_result(int(found[1]))
        text = line.decode(errors="replace").strip()
        if text:
            self._lines.append(text)
            _log.debug("engine log", extra={"engine_id": self.engine_id, "line": text})

    def _why(self) -> str:
        return f": {self._lines[-1]}" if self._lines else ""


def _how(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
