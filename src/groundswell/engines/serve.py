"""Which local engines exist and how each is started: ``groundswell serve NAME``, a child of a node."""

from __future__ import annotations

import importlib
import sys

# Name to the module with ``main(argv) -> exit status``. Modules are imported one at a time: an engine that is
# started many times over must not pay for its neighbours.
ENGINES = {
    "builtin": "groundswell.engines.builtin",
    "emulated": "groundswell.engines.emulated",
    "embeddings": "groundswell.engines.embeddings",
    "transcode": "groundswell.engines.transcode",
}


def run(name: str, argv: list[str]) -> int:
    """Run engine ``name`` in this process until it is told to stop; the exit status."""
    status: int = importlib.import_module(ENGINES[name]).main(argv)
    return status


def command(name: str, *options: str) -> list[str]:
    """The argument list that starts engine ``name`` as a child process on a port of its own choice."""
    return [sys.executable, "-m", "groundswell", "serve", name, "--port", "0", *options]
