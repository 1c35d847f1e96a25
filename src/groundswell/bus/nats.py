"""The wire of a network link: one connection to a NATS server, kept for ever.

Everything that is decided is in ``gateway_end`` and ``node_end``. Here a client connects, subscribes, carries
bytes both ways, and connects again when it was cut off, each time after another while of chance: a server
that starts anew is not met by all its nodes at once. Core NATS only; what is lost the ends send again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import nats.aio.client
import nats.errors
from nats.aio.msg import Msg

from groundswell.bus.channels import BEAT_EVERY_S
from groundswell.bus.gateway_end import GatewayEnd, guarded
from groundswell.bus.node_end import NodeEnd
from groundswell.bus.records import PART_BYTES
from groundswell.driver import Chance

_log = logging.getLogger(__name__)

# At most a fifth of all nodes shall return within the same 250 ms, and all of them within 5 s.
RETRY_SPREAD_S: Final = 3.0
REFUSED_S: Final = 5.0  # With credentials that the server does not take: they may yet be granted.
CONNECT_TIMEOUT_S: Final = 2
PING_EVERY_S: Final = 2
PINGS_MISSED_MAX: Final = 2  # A connection that is dead without a word is known after 6 s.
OUTBOX_BYTES_MAX: Final = 16 << 20  # What the network does not take is lost beyond this, and sent again.
CLOSE_S: Final = 2.0
HEAD_BYTES: Final = 1024
FIXED_IN: Final = ((2, 12, 12), (2, 14, 3))  # Below these, servers have known holes.


@dataclass(frozen=True, slots=True)
class Login:
    """Where the server is, and how it knows us: options of nats-py's ``connect``."""

    servers: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None


class End(Protocol):
    """What a wire serves."""

    subjects: tuple[str, ...]

    def received(self, subject: str, data: bytes) -> None: ...

    def connected(self) -> None: ...

    def beat(self) -> None: ...


class NatsWire:
    """One end's connection. ``make`` is given the function that sends and the clock, and makes the end."""

    def __init__(
        self, login: Login, make: Callable[[Callable[[str, bytes], None], Callable[[], float]], End]
    ) -> None:
        self._login = login
        self._chance = Chance()
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._outbox_bytes = 0
        self._more = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()
        self._up = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._client: nats.aio.client.Client | None = None
        self.end = make(self.publish, asyncio.get_running_loop().time)

    def start(self) -> None:
        """Connect, soon, and stay connected."""
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._beat())]

    async def up_within(self, timeout_s: float) -> bool:
        """Whether it is connected, in this time, and the server has our subscriptions."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._up.wait()
        except TimeoutError:
            return False

    @property
    def client(self) -> nats.aio.client.Client | None:
        """The connection while there is one."""
        return self._client if self._up.is_set() else None

    def publish(self, subject: str, data: bytes) -> None:
        """Send and forget. Without a connection it is lost, as on any network."""
        if self._up.is_set() and self._outbox_bytes <= OUTBOX_BYTES_MAX:
            self._outbox.append((subject, data))
            self._outbox_bytes += len(data)
            self._sent.clear()
            self._more.set()

    async def close(self) -> None:
        """Send what was said, then hang up."""
        with contextlib.suppress(TimeoutError, nats.errors.Error):
            async with asyncio.timeout(CLOSE_S):
                await self._sent.wait()
                if self._client is not None and self._up.is_set():
                    await self._client.flush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_EVERY_S)
            guarded(self.end.beat)

    async def _keep(self) -> None:
        while True:
            wait_s = RETRY_SPREAD_S * self._chance.draw() / 2**64
            try:
                await self._live()
            except (OSError, TimeoutError, nats.errors.Error, ssl.SSLError) as error:
                refused = "authorization" in str(error).lower()
                wait_s += REFUSED_S if refused else 0.0
                _log.warning("no connection to the network", extra={"reason": str(error) or "timeout"})
            await asyncio.sleep(wait_s)

    async def _live(self) -> None:
        """One connection, from its beginning to its end."""
        ended = asyncio.Event()

        async def on_closed() -> None:
            ended.set()

        async def on_error(error: Exception) -> None:
            _log.warning("the network complains", extra={"reason": str(error) or type(error).__name__})

        client = nats.aio.client.Client()
        pump = None
        try:
            await client.connect(
                list(self._login.servers),
                allow_reconnect=False,
                max_reconnect_attempts=1,
                connect_timeout=CONNECT_TIMEOUT_S,
                ping_interval=PING_EVERY_S,
                max_outstanding_pings=PINGS_MISSED_MAX,
                closed_cb=on_closed,
                error_cb=on_error,
                tls=self._login.tls,
                **self._login.options,
            )
            _judge(client)
            for subject in self.end.subjects:
                await client.subscribe(subject, cb=self._received)
            for _ in range(2):
                # The client's ping overtakes what it has not written yet; a second one comes behind it.
                await client.flush()
            self._client = client
            self._up.set()
            pump = asyncio.create_task(self._pump(client))
            guarded(self.end.connected)
            await ended.wait()
            _log.warning("the connection to the network broke")
        finally:
            self._up.clear()
            self._client = None
            self._outbox.clear()
            self._outbox_bytes = 0
            self._sent.set()
            if pump is not None:
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)
            if not client.is_closed:
                await client.close()

    async def _received(self, message: Msg) -> None:
        guarded(self.end.received, message.subject, message.data)

    async def _pump(self, client: nats.aio.client.Client) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._outbox:
                subject, data = self._outbox.popleft()
                self._outbox_bytes -= len(data)
                await client.publish(subject, data)
            self._sent.set()


def gateway_wire(login: Login, gateway_id: str, software: str = "") -> tuple[GatewayEnd, NatsWire]:
    """A gateway's end with its wire."""
    wire = NatsWire(login, lambda publish, now_s: GatewayEnd(gateway_id, publish, now_s, software))
    assert isinstance(wire.end, GatewayEnd)
    return wire.end, wire


def node_wire(login: Login, node_id: str, software: str = "") -> tuple[NodeEnd, NatsWire]:
    """A node's end with its wire."""
    wire = NatsWire(login, lambda publish, now_s: NodeEnd(node_id, publish, now_s, software))
    assert isinstance(wire.end, NodeEnd)
    return wire.end, wire


def _judge(client: nats.aio.client.Client) -> None:
    """Whether this server will do; only one that cannot carry a part will not."""
    if client.max_payload < PART_BYTES + HEAD_BYTES:
        raise nats.errors.Error(
            f"the server takes messages of at most {client.max_payload} bytes; "
            f"set max_payload to {2 * PART_BYTES}"
        )
    version = client.connected_server_version
    numbers = (version.major, version.minor, version.patch)
    old, new = FIXED_IN
    if numbers < old or (new[:2] <= numbers[:2] and numbers < new) or numbers[:2] == (2, 13):
        _log.warning("update nats-server: this version has known holes", extra={"version": str(version)})
