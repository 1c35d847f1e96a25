"""What does it cost to cut a video up and spread it? ``python -m bench.video`` (or ``make bench-video``).

Sixty seconds of 1080p with sound are made on the spot and transcoded twice in one run: by a gateway process
with two nodes, over HTTP, in segments; and by one ffmpeg with one decode, cascaded scaling and the same
encoder settings. Compared are the CPU seconds (user and system) of *every* process from the upload to the
last file, the uploading client included; the number of frames; the seams; and SSIM against the source.
Ratios mean more than seconds: both halves ran on the same machine minutes apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil

from groundswell.media import encode, fmp4
from groundswell.media.ladder import Rung, ladder

RATE = 30
RATIO_MAX = 1.10
SSIM_LOSS_MAX = 0.005
CONFIG = """
data = "{data}"
[gateway]
port = 0
[[nodes]]
id = "node-1"
[[nodes.engines]]
kind = "transcode"
slots = 1
[[nodes]]
id = "node-2"
[[nodes.engines]]
kind = "transcode"
slots = 1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit status whether the figures hold."""
    parser = argparse.ArgumentParser(prog="bench.video", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--source", type=Path, help="a 1080p file at 30 frames per second, instead of one made on the spot"
    )
    parser.add_argument("--skip-ssim", action="store_true")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="groundswell-bench-") as folder:
        root = Path(folder)
        source = options.source or make_source(root / "source.mp4", options.seconds)
        # The reference runs before and after, since other work on a machine makes every process dearer.
        rungs = ladder(1920, 1080, RATE)
        before = run_single(root, source, rungs)
        spread = run_gateway(root, source)
        single = run_single(root, source, rungs)
        single["each_s"] = (before["cpu_s"], single["cpu_s"])
        single["cpu_s"] = sum(single["each_s"]) / 2
        failures = report(root, source, rungs, spread, single, options.skip_ssim)
    print("PASS" if not failures else "FAIL: " + "; ".join(failures))
    return 1 if failures else 0


def make_source(path: Path, seconds: int) -> Path:
    """Scenes with motion, detail and noise; key frames where x264 wants them; a tone."""
    scene = seconds / 4
    pictures = [
        f"testsrc2=s=1920x1080:r=30:d={scene}",
        f"mandelbrot=s=1920x1080:r=30:end_scale=0.02,trim=duration={scene}",
        f"gradients=s=1920x1080:r=30:d={scene}:speed=0.02:seed=7,noise=alls=6:allf=t",
        f"cellauto=s=1920x1080:r=30:rule=110:seed=3,trim=duration={scene}",
    ]
    graph = ";".join(f"{picture},format=yuv420p,setsar=1[s{n}]" for n, picture in enumerate(pictures))
    graph += ";[s0][s1][s2][s3]concat=n=4:v=1[v]"
    command = [
        encode.ffmpeg_path(), "-loglevel", "error", "-y", "-filter_complex", graph,
        "-f", "lavfi", "-i", f"sine=frequency=440:beep_factor=4:d={seconds}", "-map", "[v]", "-map", "0:a",
        "-c:v", "libx264", "-preset", "superfast", "-crf", "26", "-maxrate", "8M", "-bufsize", "16M",
        "-c:a", "aac", "-b:a", "128k", "-t", str(seconds), str(path),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return path


# --- the gateway's way ---


def run_gateway(root: Path, source: Path) -> dict[str, Any]:
    """Start a gateway with two nodes, transcode through its HTTP interface, stop it."""
    (root / "config.toml").write_text(CONFIG.format(data=root / "data"))
    command = [sys.executable, "-m", "groundswell", "--config", str(root / "config.toml"), "gateway"]
    with (root / "gateway.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with closing(connect(root, process)) as client:
            before = cpu_s(process.pid)
            began = time.monotonic()
            job = transcode(client, source)
            wall_s = time.monotonic() - began
            after = cpu_s(process.pid)
            used = {name: after[name] - before[name] for name in after}
        if job["status"] != "done":
            raise SystemExit(
                f"the transcode {job['status']}: {job['error']}\n{(root / 'gateway.log').read_text()}"
            )
        files = root / "data" / "jobs" / job["id"] / job["playback_url"].split("/hls/")[1].split("/")[0]
        parts = {
            rung["name"]: join(files / rung["name"], root / f"spread-{rung['name']}.mp4")
            for rung in job["ladder"]
        }
        audio = join(files / "audio", root / "spread-audio.mp4")
    finally:
        process.terminate()
        process.wait(60)
    return {
        "job": job,
        "cpu_s": sum(used.values()),
        "used": used,
        "wall_s": wall_s,
        "files": parts,
        "audio": audio,
    }


def connect(root: Path, process: subprocess.Popen[bytes]) -> httpx.Client:
    """Wait until the gateway and both nodes are ready; a client with its key."""
    profile = root / "data" / "profile.json"
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit((root / "gateway.log").read_text())
        if profile.exists():
            known = json.loads(profile.read_text())
            headers = {"authorization": f"Bearer {known['api_key']}"}
            client = httpx.Client(base_url=known["base_url"], headers=headers, timeout=120, trust_env=False)
            try:
                nodes = client.get("/v1/nodes").raise_for_status().json()["data"]
            except httpx.HTTPError:
                nodes = []
            if sum(engine["healthy"] for node in nodes for engine in node["engines"]) == 2:
                return client
            client.close()
        time.sleep(0.1)
    raise SystemExit("the gateway did not become ready")


def transcode(client: httpx.Client, source: Path) -> dict[str, Any]:
    with source.open("rb") as file:
        answer = client.post("/v1/transcodes", files={"file": ("source.mp4", file, "video/mp4")})
    answer.raise_for_status()
    job: dict[str, Any] = answer.json()
    while job["status"] in ("queued", "running"):
        time.sleep(0.5)
        job = client.get(f"/v1/transcodes/{job['id']}").raise_for_status().json()
    return job


def cpu_s(pid: int) -> dict[str, float]:
    """User and system seconds so far, by who used them; what has ended counts with whoever waited for it."""
    top = psutil.Process(pid)
    own = psutil.Process().cpu_times()
    used = {
        "client": own.user + own.system,
        "gateway": 0.0,
        "splitting": 0.0,
        "transcoders": 0.0,
        "ffmpeg": 0.0,
    }
    for process in (top, *top.children(recursive=True)):
        times = process.cpu_times()
        mine, waited = ("gateway", "splitting") if process.pid == pid else ("transcoders", "ffmpeg")
        used[mine] += times.user + times.system
        used[waited] += times.children_user + times.children_system
    return used


def join(folder: Path, target: Path) -> Path:
    """One rendition as one file, as a player would append it."""
    inits = sorted(folder.glob("init-*.mp4"))
    if len(inits) != 1:
        raise SystemExit(f"{folder.name}: {len(inits)} initialisation segments, expected one")
    target.write_bytes(b"".join(path.read_bytes() for path in [inits[0], *sorted(folder.glob("*.m4s"))]))
    return target


# --- one ffmpeg ---


def run_single(root: Path, source: Path, rungs: tuple[Rung, ...]) -> dict[str, Any]:
    """The whole file in one process, with the arguments that the nodes use, but for what cutting needs."""
    task = encode.Task(kind="video", start=0, end=1 << 40, rate=(RATE, 1), rungs=rungs)
    graph = encode.filter_graph(task)
    files = {rung.name: root / f"single-{rung.name}.mp4" for rung in rungs}
    command = [
        encode.ffmpeg_path(),
        "-nostdin",
        "-loglevel",
        "error",
        "-y",
        "-threads",
        "1",
        "-i",
        str(source),
    ]
    command += ["-filter_complex_threads", "1", "-filter_complex", graph]
    for place, rung in enumerate(rungs):
        command += ["-map", f"[o{place}]", *encode.video_arguments(task, rung, 1), str(files[rung.name])]
    command += [
        "-map",
        "0:a",
        "-c:a",
        "aac",
        "-b:a",
        "128k",
        "-ar",
        "48000",
        "-ac",
        "2",
        str(root / "single-audio.mp4"),
    ]
    before = children_s()
    began = time.monotonic()
    subprocess.run(command, check=True)
    return {"cpu_s": children_s() - before, "wall_s": time.monotonic() - began, "files": files}


def children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# --- comparing ---


def report(
    root: Path,
    source: Path,
    rungs: tuple[Rung, ...],
    spread: dict[str, Any],
    single: dict[str, Any],
    skip: bool,
) -> list[str]:
    """Print everything; the figures that do not hold."""
    job, failures = spread["job"], []
    print(f"machine   {os.cpu_count()} cores, {encode.ffmpeg_path().rsplit('/', 1)[-1]}")
    print(f"source    {job['source']['width']}x{job['source']['height']}, {job['source']['duration_s']} s")
    described = ", ".join(f"{rung.name} crf {rung.crf} <= {rung.maxrate_kbps} kbit/s" for rung in rungs)
    print(f"ladder    {described}; x264 veryfast")
    nodes: dict[str, int] = {}
    for segment in job["segments"]:
        nodes[segment["node"]] = nodes.get(segment["node"], 0) + 1
    print(
        f"segments  {len(job['segments'])}: " + ", ".join(f"{node} {n}" for node, n in sorted(nodes.items()))
    )
    ratio = spread["cpu_s"] / single["cpu_s"]
    print(f"cpu       spread {spread['cpu_s']:.1f} s, one ffmpeg {single['cpu_s']:.1f} s, ratio {ratio:.3f}")
    used = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spread["used"].items())
    print(f"          spread: {used}")
    print("          one ffmpeg before and after: {:.1f} s, {:.1f} s".format(*single["each_s"]))
    print(f"wall      spread {spread['wall_s']:.1f} s, one ffmpeg {single['wall_s']:.1f} s")
    if ratio > RATIO_MAX:
        failures.append(f"cpu ratio {ratio:.3f} > {RATIO_MAX}")
    if len(nodes) < 2:
        failures.append("only one node worked")
    for rung in rungs:
        failures += compare(rung, source, spread["files"][rung.name], single["files"][rung.name], skip)
    failures += check_audio(spread["audio"])
    return failures


def compare(rung: Rung, source: Path, spread: Path, single: Path, skip: bool) -> list[str]:
    """Frames, seams, size and SSIM of one rung."""
    failures = []
    found = fmp4.samples(fmp4.split_init(spread.read_bytes())[1])
    shown = sorted(sample.time + sample.offset for sample in found)
    steps = {after - before for before, after in pairwise(shown)}
    decode = [sample.time for sample in found]
    rising = all(after > before for before, after in pairwise(decode))
    wanted = count_frames(single)
    line = f"{rung.name:9} frames {len(found)} of {wanted}, steps {sorted(steps)} ticks"
    line += f", dts {'rising' if rising else 'NOT rising'}"
    line += f", bytes {spread.stat().st_size / single.stat().st_size - 1:+.1%}"
    if len(found) != wanted or len(steps) != 1 or not rising:
        failures.append(f"{rung.name}: frames or seams")
    if not skip:
        ours, theirs = ssim(rung, source, spread), ssim(rung, source, single)
        line += f", ssim {ours:.5f} vs {theirs:.5f} ({ours / theirs - 1:+.3%})"
        if ours < theirs * (1 - SSIM_LOSS_MAX):
            failures.append(f"{rung.name}: ssim")
    print(line)
    return failures


def count_frames(path: Path) -> int:
    command = [encode.ffmpeg_path(), "-loglevel", "error", "-i", str(path), "-map", "0:v", "-c", "copy"]
    done = subprocess.run(
        [*command, "-progress", "-", "-f", "null", "-"], check=True, capture_output=True, text=True
    )
    return int(re.findall(r"^frame=(\d+)", done.stdout, re.MULTILINE)[-1])


def ssim(rung: Rung, source: Path, file: Path) -> float:
    """Against the source, scaled to the rung's size in one step."""
    graph = (
        f"[0:v]settb=1/90000,setpts=PTS-STARTPTS[a];"
        f"[1:v]settb=1/90000,setpts=PTS-STARTPTS,scale={rung.width}:{rung.height}:flags=bicubic,setsar=1[b];"
        "[a][b]ssim"
    )
    command = [encode.ffmpeg_path(), "-nostdin", "-hide_banner", "-i", str(file), "-i", str(source)]
    done = subprocess.run(
        [*command, "-lavfi", graph, "-f", "null", "-"], check=True, capture_output=True, text=True
    )
    return float(re.findall(r"All:([0-9.]+)", done.stderr)[-1])


def check_audio(path: Path) -> list[str]:
    found = fmp4.samples(fmp4.split_init(path.read_bytes())[1])
    steps = {after.time - before.time for before, after in pairwise(found)}
    print(f"audio     {len(found)} AAC frames, steps {sorted(steps)} samples")
    return [] if steps == {1024} else ["audio: gaps"]


if __name__ == "__main__":
    raise SystemExit(main())
