"""What every client is tried on, and how a script tells the test what it saw: a JSON line for each behaviour.

Scripts run in an environment of their own (.venv-clients), so nothing here imports the project.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

asked: dict[str, Any] = json.loads(sys.argv[1])
URL, KEY = f"{asked['url']}/v1", asked["key"]
CHAT, EMBEDDER, TOOLS, ENDLESS, FAMOUS = (
    asked[name] for name in ("chat", "embedder", "tools", "endless", "famous")
)
BIAS: dict[str, int] = asked["bias"]  # Makes the model begin with a call; see llama_process.py.
WEATHER: dict[str, Any] = asked["weather"]
QUESTION = "What is Groundswell?"
TEXTS = ["a gateway", "a door"]


def say(behaviour: str, **seen: Any) -> None:
    print(json.dumps({"behaviour": behaviour, **seen}), flush=True)


def versions(*packages: str) -> None:
    say("versions", packages={name: version(name) for name in packages})


def raised(call: Callable[[], Any]) -> str:
    """The class of what was raised. It is what programs catch."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def hold_the_abort(pieces: int) -> None:
    """Says that the stream was given up, and lives on: the abort must free the engine, not our end."""
    say("abort", pieces=pieces)
    sys.stdin.read()
