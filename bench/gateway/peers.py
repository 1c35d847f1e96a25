"""Peers, each in an environment of its own below ``.venv-bench``: installed once, never part of the package.

``peers/NAME.txt`` pins every package by version and hash (Linux x86-64, CPython 3.11); LiteLLM's releases
1.82.7 and 1.82.8 carried a stranger's code, which is why a version alone is not enough. What cannot be
installed here is skipped, by name.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gateway.systems import System, peers

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venv-bench"


def install(names: Sequence[str]) -> list[System]:
    """The systems of these names that can run here."""
    known = {system.name: system for system in peers(ENVIRONMENTS)}
    for name in set(names) - set(known):
        raise SystemExit(f"no peer {name}; there are {', '.join(known)}")
    ready = []
    for name in names:
        problem = _nginx() if name == "nginx" else _from_pypi(name)
        if problem:
            print(f"skipped   {name}: {problem}")
        else:
            ready.append(known[name])
    return ready


def _nginx() -> str:
    if shutil.which("nginx") or Path("/usr/sbin/nginx").exists():
        return ""
    return "not installed (apt-get install nginx-light)"


def _from_pypi(name: str) -> str:
    pins, folder = HERE / "peers" / f"{name}.txt", ENVIRONMENTS / name
    done = folder / ".done"
    if done.exists() and done.read_text() == pins.read_text():
        return ""
    print(f"installing {name} (once)", flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        command = [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", str(pins)]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
    except subprocess.CalledProcessError as error:
        return (error.stderr or str(error)).strip().splitlines()[-1]
    done.write_text(pins.read_text())
    return ""
