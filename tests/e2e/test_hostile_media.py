"""Hostile media on their whole way through a real gateway and its transcoder, under strace.

Every file is uploaded with a request for a transcode, probed, and, where it is taken, cut up and encoded.
What the demuxing children and ffmpeg asked of the kernel meanwhile is held against what they may.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_process import gateway_process
from syscalls import Call, Ran, programs, strace

import groundswell
from groundswell.media.encode import ffmpeg_path
from hostile_files import CANARY, hostile_files, scripts

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

# A second attempt at a damaged segment sees nothing new.
SETTINGS = """
[video]
attempts = 1
[[nodes]]
id = "n0"
engines = [{kind = "transcode", slots = 2}]
"""
LADDER = '[{"height": 90}]'
CLIENTS = 4
MEMORY_KB_MAX = 512 << 10
ENDS_S, POLL_S = 120.0, 0.25
# What Python, libraries and the loader read before, or without, any file of a stranger.
SYSTEM = (
    "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/locale", "/usr/share/zoneinfo",
    "/usr/local/lib", "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/locale.alias", "/etc/localtime",
    "/etc/python3", "/proc/sys/vm/overcommit_memory", "/dev/null", "/dev/urandom",
)  # fmt: skip
PYTHON = (
    sys.prefix, sys.base_prefix, *(path for path in sys.path if path.endswith("site-packages")),
    str(Path(groundswell.__file__).parents[1]),
)  # fmt: skip
# A folder of one job: its upload, what it is cut into, or one segment at the transcoder.
JOB = re.compile(
    r"/data/blobs/\w+/blob_\w+|/data/jobs/job_\w+(?=/)|/tmp/groundswell-transcode-\w+/tmp\w+(?=/)"
)


@dataclass
class Tried:
    """All files with what became of them: the answer of the gateway, or the job as it ended."""

    answers: dict[str, httpx.Response] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    ran: list[Ran] = field(default_factory=list)
    memory_kb: int = 0
    log: str = ""
    root: Path = Path()

    def media(self) -> list[Ran]:
        """The processes that had a file of a stranger open."""
        return [one for one in self.ran if _kind(one) in ("demux", "ffmpeg")]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    """One gateway for all files: starting it takes longer than most of them."""
    seen = Tried(root=tmp_path_factory.mktemp("media"))
    (seen.root / "tmp").mkdir()
    under, env = strace(seen.root / "trace"), {"TMPDIR": str(seen.root / "tmp")}
    with gateway_process(seen.root, SETTINGS, under=under, env=env) as gateway:
        gateway.wait_for_model("transcode")
        with gateway.client() as client, ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(lambda file: _try(client, seen, *file), hostile_files()))
        gateway.process.send_signal(signal.SIGTERM)
        # The most that the gateway or anything below it had in memory, as the kernel counted it.
        _, status, used = os.wait4(gateway.process.pid, 0)
        gateway.process.returncode = os.waitstatus_to_exitcode(status)
        seen.memory_kb = used.ru_maxrss
    seen.ran = programs(seen.root / "trace")
    seen.log = (seen.root / "log.jsonl").read_text()
    yield seen
    shutil.rmtree(seen.root)


def _try(client: httpx.Client, seen: Tried, name: str, content: bytes) -> None:
    files = {"file": ("film.mp4", content, "video/mp4")}
    answer = client.post("/v1/transcodes", files=files, data={"ladder": LADDER})
    assert name not in seen.answers
    seen.answers[name] = answer
    if answer.status_code != 202:
        return
    deadline = time.monotonic() + ENDS_S
    while True:
        job = client.get(f"/v1/transcodes/{answer.json()['id']}").json()
        if job["status"] in ("done", "failed"):
            seen.jobs[name] = job
            return
        assert time.monotonic() < deadline, f"{name} has not ended: {job}"
        time.sleep(POLL_S)


def _kind(ran: Ran) -> str:
    """What a program is, by its command line."""
    for mark, kind in (
        ('"groundswell.media.demux"', "demux"),
        ('"in.nut"', "ffmpeg"),
        ('"lavfi"', "check"),
        ('"-version"', "check"),
        ('"groundswell.engines.serve"', "engine"),
        ('"serve", "transcode"', "engine"),
        ('"gateway"', "gateway"),
    ):
        if mark in ran.command:
            return kind
    return ran.command


def outside(ran: Ran, root: str) -> list[str]:
    """What a process did beyond reading libraries and working in the folder of one job; ``root`` is where
    such folders are."""
    wrong, jobs = [], set[str]()
    for call in ran.calls:
        if not call.paths and not call.name.startswith("open"):
            wrong.append(call.line)  # A socket, a trace of another process, a ring of requests.
        for path in call.paths:
            job = JOB.match(path.removeprefix(root)) if path.startswith(root) else None
            if job is not None:
                jobs.add(job[0])
            elif not _harmless(call, path):
                wrong.append(call.line)
    return wrong + ([f"several jobs: {sorted(jobs)}"] if len(jobs) > 1 else [])


def _harmless(call: Call, path: str) -> bool:
    reads = call.name in ("open", "openat") and ("O_RDONLY" in call.line or path == "/dev/null")
    return reads and any(path == one or path.startswith(one + "/") for one in (*SYSTEM, *PYTHON))


def test_each_hostile_file_gets_a_clear_answer(tried: Tried) -> None:
    """422 at once, a job that fails and says why, or a good film; a 500 or an error in the log is a bug."""
    assert len(tried.answers) >= 100
    assert Counter(answer.status_code for answer in tried.answers.values()).keys() == {202, 422}
    for name, answer in tried.answers.items():
        if answer.status_code == 422:
            error = answer.json()["error"]
            assert (error["code"], error["param"]) == ("media_rejected", "file"), name
            assert CANARY not in error["message"]
    for name, job in tried.jobs.items():
        reason = job["error"]
        assert (job["status"] == "done") == (reason is None), name
        if reason is not None:
            assert reason["code"] in ("media_rejected", "transcode_failed", "frames_missing"), (name, reason)
            assert "/" not in reason["message"], name
    assert not [line for line in tried.log.splitlines() if json.loads(line)["level"] in ("error", "critical")]


def test_nothing_outside_the_folder_of_its_job_is_opened(tried: Tried) -> None:
    """No file of the machine, no other job, no socket, no program: whatever a file names."""
    media = tried.media()
    kinds = Counter(_kind(one) for one in tried.ran)
    assert kinds.keys() <= {"demux", "ffmpeg", "check", "engine", "gateway"}, kinds
    # Each upload that looks like a video was probed, each taken one was cut up, and most were encoded.
    assert kinds["demux"] >= 100
    assert kinds["ffmpeg"] >= 30
    opened = [path for one in media for call in one.calls for path in call.paths]
    assert sum("/data/blobs/" in path for path in opened) >= 100, "the trace shows how uploads are read"
    wrong = {line for one in media for line in outside(one, str(tried.root))}
    assert not wrong, "\n".join(sorted(wrong)[:20])


def test_no_process_takes_more_than_512_megabytes(tried: Tried) -> None:
    """Of the gateway, its transcoder, the demuxers and ffmpeg; a bomb would take all that there is."""
    figures = Counter(job["status"] for job in tried.jobs.values())
    refused = sum(answer.status_code == 422 for answer in tried.answers.values())
    print(
        f"\n{len(tried.answers)} hostile files: {refused} refused at once, {figures['failed']} failed later,"
        f" {figures['done']} films; most memory of a process {tried.memory_kb / 1024:.0f} MB"
    )
    assert tried.memory_kb <= MEMORY_KB_MAX


def test_nothing_is_left_of_what_was_refused(tried: Tried) -> None:
    """A disk that hostile uploads fill is a way to stop a service."""
    data = tried.root / "data"
    assert [path for path in (data / "blobs").rglob("*") if path.is_file()] == []
    done = {job["id"] for job in tried.jobs.values() if job["status"] == "done"}
    assert {path.name for path in (data / "jobs").iterdir()} == done
    assert list((tried.root / "tmp").iterdir()) == []


OPEN = """
import av, sys
for name in sys.argv[1:]:
    try:
        av.open(name, options={"protocol_whitelist": "file,tcp,http", "safe": "0"}).close()
    except Exception as error:
        print(error)
"""


@pytest.mark.parametrize("tool", ["libavformat", "ffprobe"])
def test_without_our_confinement_the_same_files_open_others(tool: str, tmp_path: Path) -> None:
    """The check can fail: the library that we use, and an ffprobe as it is installed, follow some of them."""
    wanted = {
        "libavformat": ("ffconcat", "ffconcat of a URL"),
        "ffprobe": ("master playlist with a file",),
    }[tool]
    texts = dict(scripts())
    names = [f"{number}.mp4" for number in range(len(wanted))]
    for name, text in zip(names, wanted, strict=True):
        (tmp_path / name).write_bytes(texts[text])
    command = ["ffprobe"] if tool == "ffprobe" else [sys.executable, "-I", "-c", OPEN]
    subprocess.run(
        [*strace(tmp_path / "trace"), *command, *names], cwd=tmp_path, check=False, capture_output=True
    )
    (ran,) = programs(tmp_path / "trace")
    wrong = "\n".join(outside(ran, str(tmp_path)))
    assert CANARY in wrong
    assert ("connect(" in wrong) == (tool == "libavformat")


def test_the_ffmpeg_that_is_tried_is_the_one_that_we_bring(tried: Tried) -> None:
    """Otherwise the others would be proven about some other program."""
    assert all(ffmpeg_path() in one.command for one in tried.media() if _kind(one) == "ffmpeg")
