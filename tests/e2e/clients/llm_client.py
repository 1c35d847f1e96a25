"""The `llm` command, set up as its documentation says for servers that speak the OpenAI interface."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from behaviours import CHAT, ENDLESS, KEY, QUESTION, URL, hold_the_abort, say, versions
from click.testing import CliRunner, Result
from llm.cli import cli

HOME = Path(os.environ["LLM_USER_PATH"])
MODELS = """
- model_id: {name}
  model_name: {name}
  api_base: {url}
  api_key_name: groundswell
"""


def llm(*arguments: str) -> Result:
    """One command, in this process: to start it takes two seconds."""
    return CliRunner().invoke(cli, arguments)


def text(*arguments: str) -> str:
    done = llm(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def refused(*arguments: str) -> str:
    """The status in its one line on standard error."""
    done = llm(*arguments)
    assert done.exit_code == 1
    found = re.search(r"Error code: \d+", done.stderr)
    return found[0] if found else done.stderr


versions("llm", "openai")
HOME.mkdir(parents=True, exist_ok=True)
names = (CHAT, ENDLESS, "no-such-model")
(HOME / "extra-openai-models.yaml").write_text("".join(MODELS.format(name=name, url=URL) for name in names))
text("keys", "set", "groundswell", "--value", KEY)

say("chat", content=text("-m", CHAT, "--no-stream", "-o", "temperature", "0", QUESTION))
[last] = json.loads(text("logs", "list", "-n", "1", "--json"))
say("tokens", tokens=last["output_tokens"])

say("stream", content=text("-m", CHAT, "-o", "temperature", "0", QUESTION))

say(
    "errors",
    bad_request=refused("-m", CHAT, "-o", "max_tokens", "-1", QUESTION),
    unauthorised=refused("-m", CHAT, "--key", "gsw_wrong", QUESTION),
    not_found=refused("-m", "no-such-model", QUESTION),
)

command = [
    sys.executable,
    "-m",
    "llm",
    "-m",
    ENDLESS,
    "-o",
    "temperature",
    "0",
    "-o",
    "max_tokens",
    "4000",
    QUESTION,
]
with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
    assert process.stdout is not None
    first = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    hold_the_abort(len(first))
