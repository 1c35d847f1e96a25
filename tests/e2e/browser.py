"""A real headless Chromium with a page of another origin than the gateway's, as a web site's own would be."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from node_process import JS, node

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def site() -> Iterator[str]:
    """The pages of tests/e2e/js on a port of their own; the origin."""
    handler = functools.partial(_Quiet, directory=str(JS))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def seen_by(page_url: str, argument: str, profile: Path) -> dict[str, Any]:
    """What the page's ``run`` gives for the argument, and what the browser had to complain about."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    done = subprocess.run(
        [str(node()), "page.mjs", page_url, argument, CHROMIUM, str(profile)],
        cwd=JS, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the pages, and hls.js from where npm put it."""

    def translate_path(self, path: str) -> str:
        if path == "/hls.min.js":
            path = "/node_modules/hls.js/dist/hls.min.js"
        return super().translate_path(path)

    def log_message(self, format: str, *args: Any) -> None:
        pass
