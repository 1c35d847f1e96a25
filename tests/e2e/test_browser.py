"""What a transcode is for: its HLS plays in a real browser, and reads as it should by ffprobe."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from browser import seen_by, site
from gateway_process import gateway_process

from groundswell.engines.transcode import ffmpeg_path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

RATE, LENGTH_S = 25, 10
FRAMES = RATE * LENGTH_S
SETTINGS = """
[video]
segment_s = 2.0
[[nodes]]
id = "a"
engines = [{kind = "transcode"}]
[[nodes]]
id = "b"
engines = [{kind = "transcode"}]
"""


@pytest.fixture(scope="module")
def playlist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the master playlist of a video that two nodes have transcoded, on a gateway that still runs."""
    folder = tmp_path_factory.mktemp("browser")
    clip = folder / "clip.mp4"
    command = [
        ffmpeg_path(), "-nostdin", "-loglevel", "error",
        "-f", "lavfi", "-i", f"testsrc2=s=640x360:r={RATE}:d={LENGTH_S}",
        "-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=48000:d={LENGTH_S}",
        "-c:v", "libx264", "-preset", "ultrafast", "-g", "50", "-pix_fmt", "yuv420p",
        "-c:a", "aac", str(clip),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    with gateway_process(folder, SETTINGS) as gateway, gateway.client() as client:
        gateway.wait_for_model("transcode", 2)
        blob = client.post("/v1/blobs", content=clip.read_bytes()).json()
        request = {"input": {"blob": blob["id"]}, "ladder": ["360p", "240p", "144p"]}
        job = client.post("/v1/transcodes", json=request).json()
        deadline = time.monotonic() + 120
        while job["status"] in ("queued", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
            job = client.get(f"/v1/transcodes/{job['id']}").json()
        assert job["status"] == "done", job
        assert len(job["segments"]) >= 4
        assert len({segment["node"] for segment in job["segments"]}) == 2, "seams between nodes"
        yield job["playback_url"]


@pytest.fixture(scope="module")
def seen(playlist: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the player in the browser reports after it has played to the end."""
    with site() as origin:
        yield seen_by(f"{origin}/player.html", playlist, tmp_path_factory.mktemp("profile"))


def test_the_video_plays_to_its_end_in_a_browser(seen: dict[str, Any]) -> None:
    """Nothing fatal, nothing that the player had to skip over, and the whole length of it."""
    assert seen["why"] == "ended", seen
    assert not [error for error in seen["errors"] if error["fatal"]]
    assert not [error for error in seen["errors"] if error["details"] not in TOLERATED], seen["errors"]
    assert seen["console_errors"] == []
    assert seen["duration_s"] == pytest.approx(LENGTH_S, abs=0.1)
    assert seen["current_s"] == pytest.approx(LENGTH_S, abs=0.1)


# A browser that shares two processors with other work may run out of decoded frames for a moment; that is no
# fault of the stream, whose own faults (gaps, wrong times, broken fragments) have other names.
TOLERATED = {"bufferStalledError"}


def test_the_seams_are_crossed_without_a_gap(seen: dict[str, Any]) -> None:
    """Segments made by different nodes lie end to end: the browser's buffer is one range."""
    assert seen["fragments"] == sorted(seen["fragments"])
    assert len(set(seen["fragments"])) >= 4
    assert len(seen["ranges"]) == 1, seen["ranges"]
    [[start_s, end_s]] = seen["ranges"]
    assert start_s == pytest.approx(0, abs=0.001), "players would have to skip a hole at the start"
    assert end_s == pytest.approx(LENGTH_S, abs=0.1)


def test_the_frames_are_decoded_and_all_renditions_are_offered(seen: dict[str, Any]) -> None:
    """Frames that were dropped for want of time were still in the stream; some may be lost when the player
    changes to a better rendition."""
    assert sorted(seen["levels"]) == [144, 240, 360]
    assert seen["decoded"] >= FRAMES * 0.8
    assert seen["size"][1] in (144, 240, 360)


def test_there_is_sound_all_the_way(seen: dict[str, Any]) -> None:
    """As long as the picture, as the player hears it."""
    assert seen["sound_s"] >= LENGTH_S - 0.2


@pytest.mark.parametrize("stream", ["v:0", "v:1", "v:2"])
def test_ffprobe_reads_every_frame_over_http(playlist: str, stream: str) -> None:
    """As many frames as the source has, in each rendition, evenly spaced over every seam."""
    packets = probe(playlist, "-select_streams", stream, "-show_entries", "packet=pts_time")["packets"]
    times_s = sorted(float(packet["pts_time"]) for packet in packets)
    assert len(times_s) == FRAMES
    gaps_s = [after - before for before, after in pairwise(times_s)]
    assert min(gaps_s) == pytest.approx(1 / RATE, abs=0.001)
    assert max(gaps_s) == pytest.approx(1 / RATE, abs=0.001)


def test_the_sound_has_no_gap_at_the_seams(playlist: str) -> None:
    """Every packet of sound begins where the one before it ended."""
    found = probe(playlist, "-select_streams", "a:0", "-show_entries", "packet=pts_time,duration_time")
    packets = [(float(one["pts_time"]), float(one["duration_time"])) for one in found["packets"]]
    assert sum(duration_s for _, duration_s in packets) == pytest.approx(LENGTH_S, abs=0.1)
    for (start_s, duration_s), (next_s, _) in pairwise(packets):
        assert next_s == pytest.approx(start_s + duration_s, abs=0.0015)


def probe(url: str, *options: str) -> Any:
    if shutil.which("ffprobe") is None:
        pytest.skip("no ffprobe here: apt-get install ffmpeg")
    command = ["ffprobe", "-v", "error", "-of", "json", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)
