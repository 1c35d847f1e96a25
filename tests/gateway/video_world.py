"""A gateway for video on a real socket, two nodes with real transcoders, a store on the disk."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from starlette.routing import Route

from clips import clip
from groundswell.bus.memory import MemoryLink
from groundswell.core.agent import Agent
from groundswell.core.dispatch import Dispatcher
from groundswell.engines.transcode import TranscodeEngine
from groundswell.gateway.app import Operations, application
from groundswell.gateway.openai import TextPaths
from groundswell.gateway.pipeline import Pipeline
from groundswell.gateway.relay import Relay
from groundswell.gateway.server import Server
from groundswell.gateway.transcodes import Settings, Transcodes
from groundswell.gateway.video import routes
from groundswell.model.money import Price
from groundswell.node.runtime import EngineSpec, NodeRuntime
from groundswell.store.blobs import Blobs
from groundswell.store.jobs import Jobs
from groundswell.store.sql import Store
from groundswell.wire.fetch import Fetcher

PRICE = Price(pixel_nano=150)


class VideoWorld:
    """Everything that a transcode passes through; ``client`` speaks to it over HTTP."""

    def __init__(self, root: Path, nodes: int = 2, **settings: Any) -> None:
        self.root, self.count = root, nodes
        self.settings = Settings(**settings)
        self.fetcher: Fetcher | None = None
        self.keys: Any = None
        self.nodes: list[NodeRuntime] = []

    async def start(self) -> VideoWorld:
        self.store = Store.open(f"sqlite:///{self.root}/groundswell.db")
        self.jobs = Jobs(self.store)
        await self.jobs.release_others("none")
        link = MemoryLink()
        self.relay = Relay(
            Dispatcher(), link.gateway, lambda: secrets.randbits(64), lambda _work, _finish: None
        )
        blobs = Blobs(self.root / "blobs", free_bytes_min=0)
        self.transcodes = Transcodes(
            self.jobs, blobs, self.relay, self.root / "video", f"gw-{os.getpid()}-{time.monotonic_ns()}",
            self.fetcher, self.settings,
        )  # fmt: skip
        for number in range(1, self.count + 1):
            spec = EngineSpec(
                "transcode",
                lambda url: TranscodeEngine("transcode", url, PRICE),
                (sys.executable, "-m", "groundswell.engines.transcode", "--port", "0", "--slots", "1"),
            )
            agent = Agent(f"node-{number}", time.time_ns(), {"transcode": 0})
            self.nodes.append(NodeRuntime(agent, [spec], link.node(f"node-{number}")))
        for node in self.nodes:
            node.start()
        self.server = self._server(routes(self.transcodes, self.fetcher))
        port = await self.server.start()
        self.running = asyncio.create_task(self.transcodes.run())
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        return self

    def _server(self, table: list[Route]) -> Server:
        async def nothing(_value: Any) -> Any:
            return None

        pipeline = Pipeline(self.keys)
        operations = Operations(
            self.relay.nodes, lambda: 0, lambda: (b"", "text/plain"), nothing, nothing, nothing
        )
        return Server(
            application(operations, pipeline, table), TextPaths(self.relay, pipeline).paths, drain_s=2
        )

    async def ended(self, job_id: str, timeout_s: float = 120) -> dict[str, Any]:
        """Wait until a job has ended; how it is shown then."""
        async with asyncio.timeout(timeout_s):
            while True:
                job = (await self.client.get(f"/v1/transcodes/{job_id}")).json()
                if job["status"] in ("done", "failed", "cancelled"):
                    return job
                await asyncio.sleep(0.1)

    async def submit(
        self, name: str = "plain.mp4", ladder: str = '["144p"]', **headers: str
    ) -> httpx.Response:
        """Upload a clip as a form and start its transcode."""
        file = await asyncio.to_thread(clip(name).read_bytes)
        return await self.client.post(
            "/v1/transcodes",
            files={"file": (name, file, "video/mp4")},
            data={"ladder": ladder},
            headers={key.replace("_", "-"): value for key, value in headers.items()},
        )

    async def crash(self) -> None:
        """Stop working as a killed gateway does: no lease is given back, no work is ended."""
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)

    async def stop(self) -> None:
        await self.client.aclose()
        await self.crash()
        await self.server.stop()
        self.relay.close()
        for node in self.nodes:
            await node.stop(0.1)
        self.store.close()
