"""Engines that run on this machine already, found on the ports that they usually take."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from groundswell.engines.openai_http import OpenAIHttpEngine
from groundswell.model.errors import UpstreamError
from groundswell.ports import EngineInfo

# Ollama, LM Studio, SGLang, vLLM (and many others), llama.cpp, TGI.
USUAL_PORTS: Final = (11434, 1234, 30000, 8000, 8080, 3000)
PROBE_S: Final = 5.0  # It is asked several questions, and one makes it generate.


async def find(ports: Iterable[int] = USUAL_PORTS) -> list[tuple[str, EngineInfo]]:
    """Base URLs of the servers that answer on this machine as engines do, with what they can do."""
    found = await asyncio.gather(*(_look(f"http://127.0.0.1:{port}") for port in ports))
    return [one for one in found if one is not None and one[1].capabilities]


async def _look(url: str) -> tuple[str, EngineInfo] | None:
    engine = OpenAIHttpEngine("look", url)
    try:
        async with asyncio.timeout(PROBE_S):
            return url, await engine.probe()
    except (UpstreamError, TimeoutError):
        return None
    finally:
        await engine.close()
