"""Every example runs, and so does the Python that README and pages show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_process import GatewayProcess, gateway_process

from groundswell.engines.transcode import ffmpeg_path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
EXPECTED = {"chat.py": "gateway", "search.py": "tomato", "transcode.py": "master.m3u8"}
SNIPPETS = ("README.md", "docs/how-to/use-from-code.md", "docs/tutorial.md")
SETTINGS = """
[[nodes]]
id = "node-1"
engines = [{kind = "builtin"}, {kind = "embeddings"}, {kind = "transcode"}]
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway with one engine of each real kind."""
    with gateway_process(tmp_path_factory.mktemp("gateway"), SETTINGS) as process:
        for model in ("builtin", "all-minilm-l6-v2", "transcode"):
            process.wait_for_model(model)
        yield process


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of video, made here."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    source = "testsrc2=duration=2:size=640x360:rate=30"
    command = [ffmpeg_path(), "-v", "error", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True)
    return path


def run(gateway: GatewayProcess, *arguments: str) -> str:
    env = {**os.environ, "GROUNDSWELL_URL": gateway.url, "GROUNDSWELL_API_KEY": gateway.key}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_does_what_it_says(path: Path, gateway: GatewayProcess, video: Path) -> None:
    """What people copy first works as it stands."""
    arguments = [str(video)] if path.name == "transcode.py" else []
    assert EXPECTED[path.name] in run(gateway, str(path), *arguments).lower()


@pytest.mark.parametrize("name", SNIPPETS)
def test_the_python_in_a_page_runs(name: str, gateway: GatewayProcess) -> None:
    """Only the address and the key are changed, as the page tells its reader to."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        code = block.replace("http://127.0.0.1:8787", gateway.url).replace("gsw_...", gateway.key)
        assert code != block
        assert len(run(gateway, "-c", code).strip()) > 10
