"""The nodes of this process: those of the settings, and one for each engine that was added by its URL."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from groundswell.bus.memory import MemoryLink
from groundswell.config import Config, LocalEngine, Node, UrlEngine
from groundswell.core.agent import Agent
from groundswell.engines.openai_http import OpenAIHttpEngine
from groundswell.engines.serve import command
from groundswell.engines.transcode import TranscodeEngine
from groundswell.model.errors import BadRequest, NotFound
from groundswell.model.money import Price
from groundswell.node.runtime import EngineSpec, NodeRuntime
from groundswell.ports import Engine, EngineInfo
from groundswell.store.nodes import AddedEngine, AddedEngines

UP_S = 10.0  # The engine has just answered one probe, and needs only to answer another.
ADDED_FIELDS = frozenset({"url", "key", "aliases", "slots", "fingerprint"})


class Fleet:
    """Starts, adds, removes and stops nodes. ``added`` remembers over restarts what was added;
    ``instance`` tells this gateway from every other."""

    def __init__(self, link: MemoryLink, config: Config, added: AddedEngines) -> None:
        self.instance = secrets.token_hex(8)
        self._link = link
        self._config = config
        self._added = added
        self._nodes: dict[str, NodeRuntime] = {}
        # Higher than at any earlier start, as long as the clock does not go back over a restart.
        self._generation = int(time.time() * 1000)

    async def start(self) -> None:
        """Start every node that the settings and the store know; engines come up in their own time."""
        for node in self._config.nodes:
            self._start(node.id, local_specs(node, self._config), node.region, node.trust, slots(node))
        for engine in self._config.engines:
            self._start_url(configured(engine, self._config))
        for added in await self._added.list():
            if added.id not in self._nodes:
                self._start_url(added)

    async def add(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Probe and add an engine by its URL, as ``POST /v1/nodes`` asks; what the probe found.

        Returns when the next request can land there, or after ``UP_S`` if the engine went away meanwhile.

        Raises ``BadRequest`` for a wrong request, ``UpstreamError`` when the engine does not answer."""
        added = _requested(request, self._nodes, self._config)
        adapter = adapter_of(added, added.url)
        try:
            if await adapter.gateway_instance() == self.instance:
                # Its requests would come back to it, each holding a slot for the next.
                raise BadRequest("That is the address of this gateway itself.", param="url")
            info = await adapter.probe()
        finally:
            await adapter.close()
        await self._added.add(added)
        self._start_url(added)
        await self._nodes[added.id].up_within(UP_S)
        return described(added.id, info)

    async def remove(self, node_id: str) -> None:
        """Remove an engine that was added. Raises ``NotFound``, also for nodes of the settings."""
        if node_id not in {one.id for one in await self._added.list()}:
            if node_id in self._nodes:
                raise NotFound(
                    f"{node_id} comes from the settings; remove it there.", code="node_not_added", param="id"
                )
            raise NotFound(f"There is no node {node_id!r}.", code="engine_not_found", param="id")
        await self._added.remove(node_id)
        runtime = self._nodes.pop(node_id, None)
        if runtime is not None:
            await runtime.stop(drain_timeout_s=0.0)

    async def stop(self, drain_s: float) -> None:
        """Drain and stop all nodes and their engines."""
        await asyncio.gather(*(runtime.stop(drain_s) for runtime in self._nodes.values()))

    def last_words(self, engine_id: str) -> str:
        """The last line that an engine of this id wrote on any node, for operators."""
        for runtime in self._nodes.values():
            if engine_id in runtime.engine_ids and (tail := runtime.log_tail(engine_id)):
                return tail.splitlines()[-1]
        return ""

    def pids(self) -> dict[str, dict[str, int]]:
        """The processes of local engines: node to engine to pid."""
        return {node_id: runtime.pids() for node_id, runtime in self._nodes.items()}

    def _start_url(self, added: AddedEngine) -> None:
        spec = EngineSpec("engine", partial(adapter_of, added), url=added.url)
        self._start(added.id, [spec], "", 1, {"engine": added.slots or 0})

    def _start(
        self, node_id: str, specs: list[EngineSpec], region: str, trust: int, slots: dict[str, int]
    ) -> None:
        agent = Agent(node_id, self._generation, slots, region=region, trust=trust)
        self._nodes[node_id] = NodeRuntime(agent, specs, self._link.node(node_id))
        self._nodes[node_id].start()


async def probe_url(url: str, key: str | None, aliases: Mapping[str, str]) -> dict[str, Any]:
    """What a probe of an OpenAI-compatible server finds, in the shape of ``POST /v1/nodes``' answer."""
    adapter = adapter_of(AddedEngine("probe", checked_url(url), key, dict(aliases)), url)
    try:
        return described("probe", await adapter.probe())
    finally:
        await adapter.close()


def described(node_id: str, info: EngineInfo) -> dict[str, Any]:
    """A new node as it is shown to whoever added it."""
    models = [
        {
            "model": one.model,
            "engine_model": one.engine_model,
            "kinds": sorted(one.kinds),
            "continuation": one.continuation.value,
            "context_tokens": one.context_tokens,
            "fingerprint": one.fingerprint,
        }
        for one in info.capabilities
    ]
    engine = {"id": "engine", "flavour": info.flavour, "slots": info.slots, "models": models}
    return {"id": node_id, "object": "node", "engines": [engine]}


def local_specs(node: Node, config: Config) -> list[EngineSpec]:
    return [
        EngineSpec(engine_id, partial(_connect, engine, engine_id, config), tuple(_argv(engine, config)))
        for engine_id, engine in _named(node)
    ]


def _named(node: Node) -> list[tuple[str, LocalEngine]]:
    """Engines by id: their kind, numbered from the second of a kind on."""
    named: list[tuple[str, LocalEngine]] = []
    for engine in node.engines:
        count = sum(1 for _, other in named if other.kind == engine.kind)
        named.append((engine.kind if not count else f"{engine.kind}-{count + 1}", engine))
    return named


def slots(node: Node) -> dict[str, int]:
    return {engine_id: engine.slots or 0 for engine_id, engine in _named(node)}


def _argv(engine: LocalEngine, config: Config) -> list[str]:
    options: list[str] = []
    if engine.slots:
        options += ["--slots", str(engine.slots)]
    if engine.kind == "emulated":
        options += ["--profile", engine.profile or "h100-8b", "--speed", str(engine.speed)]
        if engine.model:
            options += ["--model", engine.model]
    if engine.kind == "transcode" and config.video.ffmpeg:
        options += ["--ffmpeg", config.video.ffmpeg]
    return command(engine.kind, *options)


def _connect(engine: LocalEngine, engine_id: str, config: Config, base_url: str) -> Engine:
    price = (engine.prices or config.prices).price()
    if engine.kind == "transcode":
        return TranscodeEngine(engine_id, base_url, price)
    return OpenAIHttpEngine(engine_id, base_url, price=price, slots=engine.slots)


def adapter_of(added: AddedEngine, base_url: str) -> OpenAIHttpEngine:
    return OpenAIHttpEngine(
        "engine",
        base_url,
        api_key=added.key,
        aliases=added.aliases,
        price=added.price,
        slots=added.slots,
        fingerprint=added.fingerprint,
    )


def configured(engine: UrlEngine, config: Config) -> AddedEngine:
    key = None
    if engine.key_file:
        try:
            with open(engine.key_file, encoding="utf-8") as file:
                key = file.read().strip()
        except OSError as error:
            raise BadRequest(
                f"The key file of engine {engine.id} cannot be read: {error.strerror}.",
                code="invalid_setting",
                param="engines.key_file",
            ) from error
        if not _fits_header(key):
            raise BadRequest(
                f"The key file of engine {engine.id} must hold one line of printable ASCII.",
                code="invalid_setting",
                param="engines.key_file",
            )
    price = (engine.prices or config.prices).price()
    return AddedEngine(engine.id, engine.url, key, engine.aliases, price, engine.slots)


def _requested(request: Mapping[str, Any], taken: Mapping[str, Any], config: Config) -> AddedEngine:
    """The engine that a request describes, every field checked."""
    for name in request:
        if name not in ADDED_FIELDS:
            raise BadRequest(f"Unknown field {name!r}.", code="unknown_field", param=name)
    url = request.get("url")
    if not isinstance(url, str):
        raise BadRequest("url must be the engine's base URL.", param="url")
    url = checked_url(url)
    aliases = request.get("aliases", {})
    if not isinstance(aliases, dict) or not all(isinstance(v, str) for v in aliases.values()):
        raise BadRequest("aliases must map public names to the engine's own.", param="aliases")
    slots = request.get("slots")
    if slots is not None and (type(slots) is not int or not 1 <= slots <= 100_000):
        raise BadRequest("slots must be a whole number from 1 to 100000.", param="slots")
    key = _text(request, "key", 4096)
    fingerprint = _text(request, "fingerprint", 128)
    price: Price = config.prices.price()
    return AddedEngine(_id_for(url, taken), url, key, aliases, price, slots, fingerprint or "")


def _text(request: Mapping[str, Any], name: str, length_max: int) -> str | None:
    value = request.get(name)
    if value is not None and not (
        isinstance(value, str) and len(value) <= length_max and _fits_header(value)
    ):
        raise BadRequest(f"{name} must be 1 to {length_max} printable ASCII characters.", param=name)
    return value


def _fits_header(text: str) -> bool:
    """Whether it can be sent as a header's value, with nothing smuggled in."""
    return text != "" and text.isascii() and text.isprintable()


def checked_url(url: str) -> str:
    """The base URL without ``/v1``. Private addresses are fine here: only an operator can add an engine."""
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = urlsplit(""), False
    is_plain = _fits_header(url) and " " not in url and len(url) <= 2048
    if not is_plain or parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise BadRequest("The URL must look like http://box:11434.", param="url")
    if parts.username is not None or parts.query or parts.fragment:
        raise BadRequest(
            "The URL must not carry a user, a query or a fragment; a key goes in key.", param="url"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _id_for(url: str, taken: Mapping[str, Any]) -> str:
    """A readable id that is free: ``box-11434``, then ``box-11434-2``."""
    parts = urlsplit(url)
    stem = re.sub(r"[^a-z0-9]+", "-", f"{parts.hostname}-{parts.port or parts.scheme}".lower()).strip("-")[
        :56
    ]
    number = 1
    while (name := stem if number == 1 else f"{stem}-{number}") in taken:
        number += 1
    return name
