"""The Node.js release that npm brought, for the programs in tests/e2e/js."""

from __future__ import annotations

from pathlib import Path

JS = Path(__file__).parent / "js"


def node() -> Path:
    """Its executable."""
    found = sorted(JS.glob("node_modules/node-linux-*/bin/node"))
    assert found, "no Node.js in tests/e2e/js: run scripts/setup.sh test"
    return found[0]
