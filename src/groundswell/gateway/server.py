"""The HTTP server process side: uvicorn with our protocol, started and drained by whoever owns the loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Iterator
from functools import partial

import uvicorn

from groundswell.gateway.hot import HotPaths
from groundswell.gateway.pipeline import ASGIApp
from groundswell.gateway.protocol import GatewayProtocol, Limits
from groundswell.gateway.unread import Unread

# Connections inherit it: of what cannot be sent yet the kernel takes no more than this for each. Otherwise it
# takes megabytes for a slow reader before its engine is paused. What is on its way is not limited.
UNSENT_BYTES_MAX = 32 << 10
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: the process that started it owns them."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.exit = asyncio.Event()

    async def main_loop(self) -> None:
        """Wake once a second for the date header, not ten times, and at once to exit."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.exit.wait(), 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Listens from ``start`` until ``stop``. ``hosts_allowed`` are further names that clients may ask for;
    ``*`` allows any. On a loopback address only loopback names are answered, so that no web page can reach
    the server under a name of its own; on other addresses any name is, unless some are given."""

    def __init__(
        self,
        app: ASGIApp,
        hot: HotPaths,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
        hosts_allowed: Iterable[str] = (),
        drain_s: float = 30.0,
    ) -> None:
        limits = limits or Limits()
        protocol = partial(
            GatewayProtocol, hot=hot, limits=limits, unread=Unread(limits.unread_bytes_max),
            hosts=_hosts(host, tuple(hosts_allowed)),
        )  # fmt: skip
        self._host, self._port = host, port
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=protocol,  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=int(limits.keep_alive_s),
                timeout_graceful_shutdown=max(1, int(drain_s)),
                backlog=2048,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Bind and accept; the port that was bound. Raises ``OSError`` when the address cannot be had."""
        listener = _listen(self._host, self._port)
        self._task = asyncio.get_running_loop().create_task(self._uvicorn.serve(sockets=[listener]))
        while not self._uvicorn.started:
            if self._task.done():
                await self._task
                raise RuntimeError("the server ended before it had started")
            await asyncio.sleep(0.005)
        return int(listener.getsockname()[1])

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._uvicorn.server_state.connections)

    async def stop(self) -> None:
        """Accept nothing more, let open requests end within ``drain_s``, then cut what is left."""
        if self._task is None:
            return
        self._uvicorn.should_exit = True
        self._uvicorn.exit.set()
        await self._task
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()
        self._task = None
        await asyncio.sleep(0)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
        listener.bind((host, port))
        listener.set_inheritable(False)
    except OSError:
        listener.close()
        raise
    return listener


def _hosts(host: str, allowed: tuple[str, ...]) -> frozenset[str] | None:
    if "*" in allowed:
        return None
    if host in LOOPBACK:
        return frozenset({"127.0.0.1", "[::1]", "localhost", *(name.lower() for name in allowed)})
    if not allowed:
        return None
    return frozenset(
        {host.lower(), f"[{host.lower()}]", "127.0.0.1", "localhost", *(name.lower() for name in allowed)}
    )
