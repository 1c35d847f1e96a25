"""The systems under test: how each is started in front of the engines, and how it is seen to be ready.

All run on one core, with two engines, choosing in turn or by load, without access logs. Peers run as their
documentation says for such a set-up; Groundswell runs as ``groundswell gateway`` with its default settings,
and its two engines given by their URLs.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.gateway.tools import Cores, pinned

SLOTS = 8192  # Of each engine, for ours: the backend takes any number at once, as the peers suppose of it.
STARTS_S = 90.0
SETTLES_S = 5.0
QUESTION = {"model": "bench", "messages": [{"role": "user", "content": "request 00000000"}], "max_tokens": 80}


@dataclass(frozen=True, slots=True)
class System:
    """``command`` gets the port, the engines' ports, and a folder of its own."""

    name: str
    what: str
    command: Callable[[int, Sequence[int], Path], list[str]]
    settings: str = ""  # Printed with the figures.
    key: str = "none"


@dataclass
class Running:
    """A system that answers. ``started_s``: from the start of its process to its first answer."""

    name: str
    port: int
    key: str
    process: psutil.Process | None
    folder: Path
    started_s: float = 0.0
    rss_idle_mb: float = 0.0
    asked: int = field(default=0)  # Requests that must show in the ledger; ours only.

    def rss_mb(self) -> float:
        """Resident memory of all its processes."""
        return float(sum(one.memory_info().rss for one in self._all())) / 1e6

    def cpu_s(self) -> float:
        """User and system seconds so far of all its processes."""
        return float(sum(sum(one.cpu_times()[:2]) for one in self._all()))

    def _all(self) -> list[psutil.Process]:
        return [] if self.process is None else [self.process, *self.process.children(recursive=True)]

    def settled(self) -> int | None:
        """Usage rows on the disk, once as many as requests are there or time is up; None if it has none."""
        file = self.folder / "data" / "groundswell.db"
        if not file.exists():
            return None
        deadline = time.monotonic() + SETTLES_S
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            while True:
                rows = int(database.execute("SELECT count(*) FROM usage").fetchone()[0])
                if rows >= self.asked or time.monotonic() > deadline:
                    return rows
                time.sleep(0.05)


@contextmanager
def running(system: System, engines: Sequence[int], folder: Path, cores: Cores) -> Iterator[Running]:
    """Start a system and wait for its first answer; end it with the block. Raises ``RuntimeError``."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    command = pinned(cores.gateway, system.command(port, engines, folder))
    env = {name: value for name, value in os.environ.items() if not name.startswith("GROUNDSWELL_")}
    began_s = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=folder)
    try:
        one = Running(system.name, port, system.key, psutil.Process(process.pid), folder)
        _wait(one, process, system)
        one.started_s = time.monotonic() - began_s
        one.rss_idle_mb = one.rss_mb()
        yield one
    finally:
        _end(process)


def _wait(one: Running, process: subprocess.Popen[bytes], system: System) -> None:
    deadline = time.monotonic() + STARTS_S
    while time.monotonic() < deadline and process.poll() is None:
        if system is OURS:
            one.key = _our_key(one.folder)
        if one.key and answers(one.port, one.key):
            one.asked = 1
            return
        time.sleep(0.01)
    said = (one.folder / "log").read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{system.name} did not answer:\n{said}")


def answers(port: int, key: str) -> bool:
    """Whether a chat is answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(QUESTION), headers)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        if child.is_running():
            child.kill()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# --- ours ---

OUR_SETTINGS = """
data = "{folder}/data"
nodes = []
[[engines]]
id = "one"
url = "http://127.0.0.1:{one}"
slots = {slots}
[[engines]]
id = "two"
url = "http://127.0.0.1:{two}"
slots = {slots}
"""


def _ours(port: int, engines: Sequence[int], folder: Path) -> list[str]:
    settings = OUR_SETTINGS.format(folder=folder, one=engines[0], two=engines[1], slots=SLOTS)
    (folder / "groundswell.toml").write_text(settings)
    return [
        sys.executable, "-m", "groundswell", "--config", str(folder / "groundswell.toml"),
        "gateway", "--port", str(port),
    ]  # fmt: skip


def _our_key(folder: Path) -> str:
    try:
        return str(json.loads((folder / "data" / "profile.json").read_text())["api_key"])
    except (OSError, ValueError, KeyError):
        return ""


OURS = System(
    "groundswell",
    "this gateway",
    _ours,
    f"as shipped: authentication, dispatch over two engines by URL ({SLOTS} slots each), metering into "
    "SQLite (WAL, synchronous=FULL), continuation buffer, metrics",
)


# --- nginx ---

NGINX = """
daemon off; worker_processes 1; error_log {folder}/error.log warn; pid {folder}/nginx.pid;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000000;
  upstream engines {{
    server 127.0.0.1:{one}; server 127.0.0.1:{two}; keepalive 512; keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=8192;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


def _nginx(port: int, engines: Sequence[int], folder: Path) -> list[str]:
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, one=engines[0], two=engines[1]))
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    return [binary, "-p", str(folder), "-c", str(folder / "nginx.conf")]


# --- routers in Rust, and LiteLLM ---


def _router(
    program: Path, words: Sequence[str], more: Sequence[str]
) -> Callable[[int, Sequence[int], Path], list[str]]:
    def command(port: int, engines: Sequence[int], folder: Path) -> list[str]:
        urls = [f"http://127.0.0.1:{engine}" for engine in engines]
        return [
            str(program), *words, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls,
            "--policy", "round_robin", "--prometheus-port", str(_free_port()), *more,
        ]  # fmt: skip

    return command


def _litellm(program: Path) -> Callable[[int, Sequence[int], Path], list[str]]:
    def command(port: int, engines: Sequence[int], folder: Path) -> list[str]:
        models = [
            {
                "model_name": "bench",
                "litellm_params": {
                    "model": "openai/bench", "api_base": f"http://127.0.0.1:{engine}/v1", "api_key": "none",
                },
            }
            for engine in engines
        ]  # fmt: skip
        settings = {"model_list": models, "general_settings": {"master_key": "sk-bench"}}
        (folder / "litellm.yaml").write_text(json.dumps(settings))  # JSON is YAML.
        return [
            str(program), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1",
            "--port", str(port), "--num_workers", "1", "--telemetry", "False",
        ]  # fmt: skip

    return command


def peers(environments: Path) -> list[System]:
    """All that we know to start. ``environments`` holds one folder for each of PyPI's."""

    def program(name: str) -> Path:
        return environments / name / "bin" / name

    # Their limits on concurrency are lifted where there are any, so that 5,000 streams can be open.
    open_wide = ["--max-concurrent-requests", "16384"]
    return [
        System("nginx", "nginx, one worker, proxy_buffering off", _nginx, "no authentication, no metering"),
        System(
            "smg", "smg (successor of sglang-router)", _router(program("smg"), ["launch"], open_wide),
            "round robin, no authentication, no metering",
        ),
        System(
            "sglang-router", "sglang-router", _router(program("sglang-router"), ["launch"], open_wide),
            "round robin, no authentication, no metering",
        ),
        System(
            "vllm-router", "vllm-router", _router(program("vllm-router"), [], open_wide),
            "round robin, no authentication, no metering",
        ),
        System(
            "litellm", "LiteLLM proxy, one worker", _litellm(program("litellm")),
            "a master key, no database, no metering", key="sk-bench",
        ),
    ]  # fmt: skip
