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
from groundswell.bus.gateway_end import GatewayEnd
from groundswell.bus.guarded import guarded
from groundswell.bus.node_end import NodeEnd
from groundswell.bus.records import PART_BYTES
from groundswell.driver import Chance

_log = logging.getLogger(__name__)

# asyncio says so at the end of each TLS connection of a client that uses streams; it means nothing.
logging.getLogger("asyncio").addFilter(lambda record: "returning true from eof_received" not in record.msg)

# At most a fifth of all nodes shall return within the same 250 ms, and all of them within 5 s.
RETRY_FIRST_S: Final = 4.5  # The first try comes within this; most often the server is there already.
RETRY_S: Final = (2.0, 4.5)  # All later ones.
REFUSED_S: Final = 5.0  # With credentials that the server does not take: they may yet be granted.
CONNECT_TIMEOUT_S: Final = 2
PING_EVERY_S: Final = 2
PINGS_MISSED_MAX: Final = 2  # A connection that is dead without a word is known after 6 s.
OUTBOX_BYTES_MAX: Final = 16 << 20  # What the network does not take is lost beyond this, and sent again.
CLOSE_S: Final = 2.0
ESTABLISH_S: Final = 8.0
LOOK_EVERY_S: Final = 0.2
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
        self._refused = asyncio.Event()
        self._was_up = False
        self._tasks: list[asyncio.Task[None]] = []
        self._client: nats.aio.client.Client | None = None
        self.end = make(self.publish, asyncio.get_running_loop().time)

    def start(self) -> None:
        """Connect, soon, and stay connected."""
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._beat())]

    async def up_within(self, timeout_s: float) -> bool:
        """Whether it is connected, in this time, and the server has our subscriptions. False at once when the
        server does not let us in."""
        waits = [asyncio.ensure_future(one.wait()) for one in (self._up, self._refused)]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for one in waits:
            one.cancel()
        return self._up.is_set()

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
        tries = 0
        while True:
            self._was_up = False
            try:
                await self._live()
            except Exception as error:  # Of whatever kind: a wire that gives up is a node that is lost.
                self._refused.set() if "authorization" in str(error).lower() else self._refused.clear()
                _log.warning("no connection to the network", extra={"reason": _reason(error)})
            tries = 0 if self._was_up else tries + 1
            refused_s = REFUSED_S if self._refused.is_set() else 0.0
            await asyncio.sleep(retry_s(tries, self._chance.draw()) + refused_s)

    async def _live(self) -> None:
        """One connection, from its beginning to its end."""
        client = nats.aio.client.Client()
        pump = None
        try:
            async with asyncio.timeout(ESTABLISH_S):
                await self._establish(client)
            self._client = client
            self._refused.clear()
            self._up.set()
            self._was_up = True
            pump = asyncio.create_task(self._pump(client))
            guarded(self.end.connected)
            # The client's own word for it may fail to come when it was cut off in the middle of a write.
            while client.is_connected:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_EVERY_S)
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
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSE_S):
                    await client.close()

    async def _establish(self, client: nats.aio.client.Client) -> None:
        """Connect, and have the server know what we listen to."""

        async def on_error(error: Exception) -> None:
            _log.warning("the network complains", extra={"reason": _reason(error)})

        await client.connect(
            list(self._login.servers),
            allow_reconnect=False,
            max_reconnect_attempts=1,
            connect_timeout=CONNECT_TIMEOUT_S,
            ping_interval=PING_EVERY_S,
            max_outstanding_pings=PINGS_MISSED_MAX,
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


def retry_s(tries: int, draw: int) -> float:
    """How long to wait for the next try, after so many in vain; ``draw`` is 64 bits of chance."""
    least_s, most_s = (0.0, RETRY_FIRST_S) if tries == 0 else RETRY_S
    return least_s + (most_s - least_s) * draw / 2**64


def gateway_wire(
    login: Login,
    gateway_id: str,
    software: str = "",
    on_flood: Callable[[str], None] = lambda node_id: None,
) -> tuple[GatewayEnd, NatsWire]:
    """A gateway's end with its wire."""
    wire = NatsWire(login, lambda publish, now_s: GatewayEnd(gateway_id, publish, now_s, software, on_flood))
    assert isinstance(wire.end, GatewayEnd)
    return wire.end, wire


def node_wire(login: Login, node_id: str, software: str = "") -> tuple[NodeEnd, NatsWire]:
    """A node's end with its wire."""
    wire = NatsWire(login, lambda publish, now_s: NodeEnd(node_id, publish, now_s, software))
    assert isinstance(wire.end, NodeEnd)
    return wire.end, wire


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


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
