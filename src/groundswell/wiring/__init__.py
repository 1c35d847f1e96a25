"""Wired by hand: which parts a process has and how they know each other. Nothing is decided here."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from groundswell.bus.memory import MemoryGatewayLink, MemoryLink
from groundswell.config import Config
from groundswell.core.contract import Finish
from groundswell.core.dispatch import Dispatcher
from groundswell.driver import Chance
from groundswell.gateway import video
from groundswell.gateway.access_log import AccessLog
from groundswell.gateway.app import Operations, application
from groundswell.gateway.openai import TextPaths
from groundswell.gateway.origins import Origins
from groundswell.gateway.pipeline import Pipeline, Seen
from groundswell.gateway.protocol import Limits
from groundswell.gateway.relay import Relay
from groundswell.gateway.server import LOOPBACK, Server
from groundswell.gateway.transcodes import Settings, Transcodes
from groundswell.media.probe import MediaLimits
from groundswell.model.errors import Conflict, GroundswellError, InternalError
from groundswell.model.work import Kind, Work
from groundswell.store.keys import KeyRing
from groundswell.store.ledger import UsageRow
from groundswell.telemetry.metrics import Metrics
from groundswell.telemetry.traces import Tracer
from groundswell.wire.fetch import Fetcher, FetchRules
from groundswell.wiring.fleet import Fleet, probe_url
from groundswell.wiring.state import State, open_keys, open_state, open_store

if TYPE_CHECKING:
    from groundswell.wiring.network import Network

__all__ = ["Service", "open_keys", "open_store", "probe_url"]

_log = logging.getLogger(__name__)

READY_EVERY_S = 0.05
STRAGGLERS_S = 8.0
FLEET_EVERY_S = 1.0
SWEEP_EVERY_S = 600.0
FINISHES_KEPT = 256
STOP_S = 5.0  # For nodes, after open requests have had their time to end.


@dataclass
class Service:
    """A running gateway with its nodes. ``finished`` holds the last ends by request id, for the tour."""

    config: Config
    keys: KeyRing
    fleet: Fleet
    relay: Relay
    network: Network | None = None
    port: int = 0
    started_in_s: float = 0.0
    finished: OrderedDict[str, Finish] = field(default_factory=OrderedDict)

    @property
    def is_open(self) -> bool:
        """Whether others than this machine can reach it."""
        return self.config.gateway.host not in LOOPBACK

    @property
    def base_url(self) -> str:
        host = self.config.gateway.host
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)  # noqa: S104
        return f"http://{host}:{self.port}"

    async def ready(self, timeout_s: float) -> list[str]:
        """Wait until each kind of engine that the settings promise is up somewhere.

        What is missing after ``timeout_s`` seconds, each with the last words of such an engine."""
        wanted = {engine.kind for node in self.config.nodes for engine in node.engines}
        late_s = asyncio.get_running_loop().time() + timeout_s
        while wanted and (now_s := asyncio.get_running_loop().time()) < late_s:
            for view in self.relay.nodes():
                up = wanted & {one.engine_id.split("-")[0] for one in view.report.engines if one.healthy}
                if up:
                    # They all start at once: what is not up soon after the others has a reason of its own.
                    late_s = min(late_s, now_s + STRAGGLERS_S)
                    wanted -= up
            await asyncio.sleep(READY_EVERY_S)
        return [f"{kind} ({self.fleet.last_words(kind) or 'it says nothing'})" for kind in sorted(wanted)]

    @classmethod
    @asynccontextmanager
    async def running(cls, config: Config) -> AsyncIterator[Service]:
        """Run a gateway until the block ends; then drain. Raises ``GroundswellError`` if it cannot start."""
        async with open_state(config) as state, AsyncExitStack() as stack:
            metrics = Metrics()
            tracer = Tracer(config.telemetry.otlp_endpoint, config.telemetry.trace_share) if (
                config.telemetry.otlp_endpoint
            ) else None  # fmt: skip
            state.store.on_commit = metrics.commit
            state.store.on_broken = _end_process
            link = MemoryLink()
            ends = _Ends(state, metrics, tracer)
            network = await stack.enter_async_context(_network(config, state, link.gateway))
            relay = Relay(
                Dispatcher(queue_works_max=config.queue.works),
                network.link if network is not None else link.gateway,
                Chance().draw,
                ends.finish,
            )
            fleet = Fleet(link, config, state.engines)
            service = cls(config, state.keys, fleet, relay, network, finished=ends.finished)
            nodes = _Nodes(fleet, network)
            async with _front_door(config, state, relay, nodes, metrics, ends) as door:
                service.port = door.port
                await fleet.start()
                try:
                    yield service
                finally:
                    await door.close_to_new_work()
                    await relay.drain(config.gateway.drain_s)
                    await fleet.stop(STOP_S)
                    relay.close()
                    if tracer is not None:
                        tracer.close()


@asynccontextmanager
async def _network(config: Config, state: State, memory: MemoryGatewayLink) -> AsyncIterator[Network | None]:
    """The way to other machines, if the settings open one."""
    if not config.network.open:
        yield None
        return
    from groundswell.wiring.network import Network  # A tenth of a second that most starts do not need.

    async with Network.running(config, memory, state.joined) as network:
        yield network


@dataclass(frozen=True, slots=True)
class _Nodes:
    """What an operator adds and removes: engines by their URL, and nodes of other machines."""

    fleet: Fleet
    network: Network | None

    async def remove(self, node_id: str) -> None:
        if self.network is None or not await self.network.remove(node_id):
            await self.fleet.remove(node_id)

    async def invite(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.network is None:
            raise Conflict(
                "This gateway is not open to other machines; start it with --open ADDRESS.",
                code="network_closed",
            )
        return await self.network.invite(request)


class _Ends:
    """What follows the end of a work: its usage row, metrics, a span."""

    def __init__(self, state: State, metrics: Metrics, tracer: Tracer | None) -> None:
        self.text: TextPaths | None = None
        self.finished: OrderedDict[str, Finish] = OrderedDict()
        self._state, self._metrics, self._tracer = state, metrics, tracer

    def finish(self, work: Work, finish: Finish) -> None:
        """``Relay``'s ``on_finish``."""
        duration_s = finish.duration_s
        self._metrics.finished(work, finish, duration_s)
        account = self.text.account(work.id) if self.text is not None else None
        if self._tracer is not None:
            self._tracer.span_for(work, finish, duration_s, account.traceparent if account else "")
        if account is None or work.kind is Kind.TRANSCODE:
            return  # Segments are settled with their task, in one transaction.
        self.finished[account.request_id] = finish
        while len(self.finished) > FINISHES_KEPT:
            self.finished.popitem(last=False)
        if finish.engine_id:
            self._state.settler.add(_usage_row(work, finish, account.tenant, account.key_id))


def _usage_row(work: Work, finish: Finish, tenant: str, key_id: str) -> UsageRow:
    return UsageRow(
        work.id, tenant, key_id, str(work.kind), work.model, int(time.time() * 1000), finish.node_id,
        finish.engine_id, finish.usage, finish.price, finish.state, finish.attempts, finish.continued,
    )  # fmt: skip


@dataclass
class _FrontDoor:
    """``background`` are the tasks that make work of their own: durable jobs, sweeping, watching."""

    port: int
    text: TextPaths
    background: list[asyncio.Task[None]] = field(default_factory=list)

    async def close_to_new_work(self) -> None:
        """Refuse new requests; leave durable jobs where they are, for the next start. Idempotent."""
        self.text.draining = True
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)


@asynccontextmanager
async def _front_door(
    config: Config, state: State, relay: Relay, nodes: _Nodes, metrics: Metrics, ends: _Ends
) -> AsyncIterator[_FrontDoor]:
    """The HTTP server and what works behind it."""
    pipeline = Pipeline(state.keys, Origins(config.gateway.allowed_origins))

    access_log = AccessLog(asyncio.get_running_loop())

    def observe(seen: Seen) -> None:
        metrics.http(seen.route, seen.status, seen.seconds)
        access_log.add(seen)

    text = ends.text = TextPaths(
        relay,
        pipeline,
        body_bytes_max=config.limits.body_bytes,
        continues=config.gateway.continuation,
        queue_wait_s=config.queue.wait_s,
        observe=observe,
    )
    owner = f"gateway-{os.getpid()}-{secrets.token_hex(4)}"
    fetcher = Fetcher(_fetch_rules(config)) if config.video.fetch else None
    transcodes = _transcodes(config, state, relay, owner, fetcher, metrics)
    operations = Operations(
        nodes=relay.nodes,
        queued=lambda: relay.queued,
        metrics=metrics.render,
        add_node=nodes.fleet.add,
        remove_node=nodes.remove,
        invite=nodes.invite,
        instance=nodes.fleet.instance,
    )
    app = application(operations, pipeline, video.routes(transcodes, fetcher, config.video.ladder), observe)
    limits = Limits(
        upload_bytes_max=config.limits.upload_bytes, connections_max=config.limits.connections,
        stalled_s=config.limits.stalled_s, progress_bytes=config.limits.progress_bytes,
        unread_bytes_max=config.limits.unread_bytes,
    )  # fmt: skip
    server = Server(
        app, text.paths, limits=limits, host=config.gateway.host, port=config.gateway.port,
        hosts_allowed=config.gateway.allowed_hosts, drain_s=config.gateway.drain_s,
    )  # fmt: skip
    await state.jobs.release_others(owner)
    try:
        port = await server.start()
    except OSError as error:
        raise InternalError(
            f"Port {config.gateway.port} of {config.gateway.host} cannot be had ({error.strerror}). Is a "
            "gateway running already? Choose another with --port.",
            code="port_in_use",
        ) from error
    metrics.watch(lambda: relay.open_works, lambda: server.connections, lambda: len(asyncio.all_tasks()))
    door = _FrontDoor(port, text)
    door.background = [
        asyncio.create_task(_forever("transcodes", transcodes.run())),
        asyncio.create_task(_forever("sweep", _sweep(config, state, transcodes))),
        asyncio.create_task(_forever("fleet", _watch_fleet(relay, metrics))),
    ]
    try:
        yield door
    finally:
        await door.close_to_new_work()
        await server.stop()
        access_log.flush()


def _transcodes(
    config: Config, state: State, relay: Relay, owner: str, fetcher: Fetcher | None, metrics: Metrics
) -> Transcodes:
    settings = Settings(
        segment_s=config.video.segment_s,
        attempts=config.video.attempts,
        upload_bytes=config.limits.upload_bytes,
        keep_s=config.limits.blob_keep_s,
        limits=MediaLimits(config.video.pixels, config.video.streams, config.video.length_s),
    )
    return Transcodes(
        state.jobs, state.blobs, relay, config.folder / "jobs", owner, fetcher, settings,
        on_job=lambda job_state: metrics.job("transcode", job_state),
    )  # fmt: skip


def _fetch_rules(config: Config) -> FetchRules:
    """Our own names are refused here; our own addresses are by the fetcher itself."""
    video = config.video
    return FetchRules(
        ports=frozenset(video.fetch_ports),
        allow=tuple(entry.lower() for entry in video.fetch_private),
        refuse=tuple(name.lower() for name in config.gateway.allowed_hosts),
        only=tuple(name.lower() for name in video.fetch_hosts),
    )


async def _forever(name: str, work: Coroutine[Any, Any, None]) -> None:
    """A background task that must not end. A defect in it is logged and ends the process: half a gateway
    that looks alive is worse than a restart."""
    try:
        await work
    except asyncio.CancelledError:
        raise
    except Exception:
        _log.exception("background work failed", extra={"task": name})
        os.kill(os.getpid(), signal.SIGTERM)


async def _sweep(config: Config, state: State, transcodes: Transcodes) -> None:
    while True:
        try:
            await transcodes.sweep()
            await asyncio.to_thread(state.blobs.sweep, config.limits.blob_keep_s)
        except (GroundswellError, OSError):
            # A full disk, or a file that somebody else removed just now: the next sweep is soon enough.
            _log.warning("sweeping failed", exc_info=True)
        await asyncio.sleep(SWEEP_EVERY_S)


async def _watch_fleet(relay: Relay, metrics: Metrics) -> None:
    while True:
        nodes: dict[str, int] = {}
        engines: dict[str, int] = {}
        running = 0
        for view in relay.nodes():
            nodes[view.state] = nodes.get(view.state, 0) + 1
            for engine in view.report.engines:
                engine_state = "up" if engine.healthy else "down"
                engines[engine_state] = engines.get(engine_state, 0) + 1
                running += engine.running
        metrics.fleet(relay.queued, running, nodes, engines)
        await asyncio.sleep(FLEET_EVERY_S)


def _end_process(error: GroundswellError) -> None:
    """The store cannot write any more: what is not committed is not acknowledged, so stop and recover."""
    _log.critical("the store is broken, stopping", extra={"code": error.code, "error_message": error.message})
    os.kill(os.getpid(), signal.SIGTERM)
