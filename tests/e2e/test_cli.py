"""Every command, as a script or a person calls it, against one real gateway."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import run, started
from gateway_process import GatewayProcess, gateway_process

from groundswell.engines.serve import ENGINES
from groundswell.engines.transcode import ffmpeg_path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SETTINGS = """
[[nodes]]
id = "a"
engines = [{kind = "builtin"}, {kind = "embeddings"}, {kind = "transcode"}]
[[nodes]]
id = "b"
engines = [{kind = "transcode"}]
"""


@dataclass
class Commands:
    """Runs commands with the data folder of one gateway."""

    gateway: GatewayProcess
    folder: Path

    def __call__(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return run(self.folder, *arguments, **options)  # type: ignore[arg-type]

    def good(self, *arguments: str, **options: object) -> str:
        """The output of a command that must succeed, and must have nothing to complain about."""
        done = self(*arguments, **options)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    def bad(self, *arguments: str, **options: object) -> str:
        """What a command says that must fail: something short on standard error, and no stack."""
        done = self(*arguments, **options)
        assert done.returncode not in (0, 130), done.stdout
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        return done.stderr


@pytest.fixture(scope="module")
def groundswell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with gateway_process(tmp_path_factory.mktemp("cli"), SETTINGS) as gateway:
        gateway.wait_for_model("builtin")
        gateway.wait_for_model("transcode", 2)
        gateway.wait_for_model("all-minilm-l6-v2")
        yield Commands(gateway, gateway.folder / "data")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of small video with sound: it is done in a moment."""
    return video(tmp_path_factory.mktemp("clip") / "holiday.mp4", "320x180", 8)


def video(path: Path, size: str, length_s: int) -> Path:
    command = [
        ffmpeg_path(), "-nostdin", "-loglevel", "error",
        "-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d={length_s}",
        "-f", "lavfi", "-i", f"sine=d={length_s}",
        "-c:v", "libx264", "-preset", "ultrafast", "-g", "50", "-pix_fmt", "yuv420p",
        "-c:a", "aac", str(path),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return path


def table(text: str) -> list[dict[str, str]]:
    """A table as it comes on a pipe: a line of headings, and tabs."""
    headings, *rows = (line.split("\t") for line in text.splitlines())
    return [dict(zip(headings, row, strict=True)) for row in rows]


# --- keys ---


def test_a_key_is_made_listed_used_and_revoked(groundswell: Commands) -> None:
    """The life of a key; its secret is shown once."""
    token = groundswell.good("keys", "create", "laptop", "--scope", "inference", "--expires", "12h").strip()
    assert re.fullmatch(r"gsw_\w{40,}", token)
    listed = groundswell.good("keys", "list")
    assert token not in listed
    [key] = [row for row in table(listed) if row["name"] == "laptop"]
    assert key["key"] == f"...{token[-4:]}"
    assert key["scopes"] == "inference"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\dZ", key["ends"])
    mine = {"GROUNDSWELL_API_KEY": token}
    assert groundswell.good("chat", "What is a node?", env=mine)
    assert "scope" in groundswell.bad("nodes", "list", env=mine), "it may not administer"
    assert groundswell.good("keys", "revoke", key["id"]) == "revoked 1 key\n"
    assert "revoked" in groundswell.good("keys", "list")
    assert "invalid_api_key" in groundswell.bad("chat", "What is a node?", env=mine)


def test_a_wrong_lifetime_and_a_key_that_is_not_there_are_said(groundswell: Commands) -> None:
    """Nothing is made or revoked by half."""
    assert "30d" in groundswell.bad("keys", "create", "x", "--expires", "soon")
    assert "No such key" in groundswell.bad("keys", "revoke", "key_nobody")
    assert "inference" in groundswell.bad("keys", "create", "x", "--scope", "everything")


# --- chat ---


def test_a_question_is_answered_from_the_argument_and_from_a_pipe(groundswell: Commands) -> None:
    """The same words either way: one line of plain text."""
    answer = groundswell.good("chat", "What is Groundswell?")
    assert "Groundswell" in answer
    assert answer.count("\n") == 1
    assert groundswell.good("chat", stdin="What is Groundswell?\n") == answer


def test_chat_says_what_a_wrong_model_and_an_empty_question_are(groundswell: Commands) -> None:
    """The gateway's own sentence and request id come through."""
    said = groundswell.bad("chat", "Hello", "--model", "nonesuch")
    assert "nonesuch" in said
    assert "model_not_found" in said
    assert "request " in said
    assert "no question" in groundswell.bad("chat", stdin="")


def test_usage_is_summed_as_it_was_settled(groundswell: Commands) -> None:
    """Whoever runs it for others wants to know who used what. Settled at most a second later."""
    token = groundswell.good("keys", "create", "metered", "--tenant", "acme").strip()
    assert groundswell.good("usage", "--tenant", "acme") == "Nothing was used in the last 30 days.\n"
    groundswell.good("chat", "What is a node?", env={"GROUNDSWELL_API_KEY": token})
    deadline = time.monotonic() + 10
    while "acme" not in (said := groundswell.good("usage")):
        assert time.monotonic() < deadline, said
    [acme] = [row for row in table(said) if row["tenant"] == "acme"]
    assert acme["works"] == "1"
    assert int(acme["input tokens"]) > 0
    assert int(acme["output tokens"]) > 5
    assert acme["cost"].startswith("$0.0000")
    [model] = table(groundswell.good("usage", "--by", "model", "--tenant", "acme", "--days", "1"))
    assert (model["model"], model["cost"]) == ("builtin", acme["cost"])


# --- video ---


def test_a_file_is_transcoded_and_fetched(groundswell: Commands, clip: Path, tmp_path: Path) -> None:
    """One command from a file to a folder that any player opens."""
    said = groundswell.good("transcode", str(clip), "--rungs", "360p,240p", "--output", str(tmp_path / "out"))
    job, master = said.splitlines()
    assert re.fullmatch(r"job job_\w+", job)
    assert master == f"{tmp_path}/out/master.m3u8"
    assert Path(master).read_text().count("#EXT-X-STREAM-INF") == 1, (
        "one rung is as tall as the source at most"
    )
    probe = subprocess.run(
        ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v:0", "-show_entries",
         "stream=nb_read_frames", "-of", "csv=p=0", master],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert probe.stdout.split()[0].strip(",") == "200"


def test_a_job_goes_on_without_its_waiter_and_is_fetched_later(
    groundswell: Commands, clip: Path, tmp_path: Path
) -> None:
    """--no-wait returns at once; fetch waits, and resumes where a broken fetch stopped."""
    job_id = groundswell.good("transcode", str(clip), "--rungs", "144p", "--no-wait").split()[1]
    folder = tmp_path / f"{job_id}.hls"
    assert groundswell.good("jobs", "fetch", job_id, cwd=tmp_path) == f"{job_id}.hls/master.m3u8\n"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert files
    assert not [path for path in files if path.name.endswith(".partial")]
    kept, lost = files[0], files[-1]
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    groundswell.good("jobs", "fetch", job_id, cwd=tmp_path)
    assert lost.exists()
    assert kept.stat().st_mtime_ns == stamp, "what is there is not fetched again"


def test_jobs_are_listed_shown_and_cancelled(groundswell: Commands, tmp_path: Path) -> None:
    """For a script: tabs and JSON. The video is long enough to be cancelled on its way."""
    long = video(tmp_path / "long.mp4", "1280x720", 30)
    job_id = groundswell.good("transcode", str(long), "--no-wait").split()[1]
    assert groundswell.good("jobs", "cancel", job_id) == f"{job_id} cancelled\n"
    newest = table(groundswell.good("jobs", "list", "--limit", "1"))
    assert [(row["id"], row["status"]) for row in newest] == [(job_id, "cancelled")]
    shown = json.loads(groundswell.good("jobs", "show", job_id))
    assert shown["id"] == job_id
    assert shown["status"] == "cancelled"
    assert "cancelled" in groundswell.bad("jobs", "fetch", job_id)
    assert "not_found" in groundswell.bad("jobs", "show", "job_nobody")


def test_a_file_that_is_no_video_is_refused_in_words(groundswell: Commands, tmp_path: Path) -> None:
    """Whichever file was meant, this was not it."""
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    said = groundswell("transcode", str(text))
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert said.stderr.startswith("groundswell: ")
    (tmp_path / "empty.mp4").touch()
    assert "empty" in groundswell.bad("transcode", str(tmp_path / "empty.mp4"))
    assert "does not exist" in groundswell.bad("transcode", str(tmp_path / "missing.mp4"))
    assert "360p" in groundswell("transcode", str(text), "--rungs", "9000p").stderr


def test_an_interrupted_wait_says_how_to_go_on(groundswell: Commands, tmp_path: Path) -> None:
    """Ctrl-C ends the waiting, not the job; whoever pressed it wants to know that."""
    long = video(tmp_path / "slow.mp4", "1280x720", 30)
    with started(groundswell.folder, "transcode", str(long), cwd=tmp_path) as process:
        assert process.stdout is not None
        job_id = process.stdout.readline().split()[1]
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"groundswell jobs fetch {job_id}" in said
    assert errors.strip() == ""
    assert json.loads(groundswell.good("jobs", "show", job_id))["status"] in ("queued", "running")
    groundswell.good("jobs", "cancel", job_id)


# --- nodes and state ---


def test_nodes_are_listed_with_their_models(groundswell: Commands) -> None:
    """One row for each model on each engine."""
    rows = table(groundswell.good("nodes", "list"))
    assert {(row["node"], row["model"]) for row in rows} == {
        ("a", "builtin"), ("a", "all-minilm-l6-v2"), ("a", "transcode"), ("b", "transcode"),
    }  # fmt: skip
    assert {row["state"] for row in rows} == {"up"}
    assert {row["continues"] for row in rows if row["model"] == "builtin"} == {"exact"}


def test_nodes_of_the_settings_and_unknown_ones_are_not_removed(groundswell: Commands) -> None:
    """What the settings say comes back at the next start, so it is not pretended away."""
    assert "settings" in groundswell.bad("nodes", "rm", "a")
    assert "node_nobody" in groundswell.bad("nodes", "rm", "node_nobody")
    assert "NAME=ENGINE_MODEL" in groundswell.bad("nodes", "add", "http://127.0.0.1:1", "--alias", "x")


@pytest.mark.parametrize("arguments", [(), ("--once",)])
def test_status_on_a_pipe_is_one_picture(groundswell: Commands, arguments: tuple[str, ...]) -> None:
    """A script must not hang on it."""
    said = groundswell.good("status", *arguments)
    assert re.match(r"2 nodes, \d+ queued, \d+ running\n", said)
    assert len(table(said.partition("\n")[2])) == 4


def test_the_doctor_finds_a_healthy_gateway_well(groundswell: Commands) -> None:
    """All lines are ok, and the exit status says so to scripts."""
    lines = groundswell.good("doctor").splitlines()
    assert len(lines) >= 10
    assert all(line.startswith("ok  ") for line in lines), lines
    assert any("2 nodes, all engines healthy" in line for line in lines)
    assert f"ok    a gateway answers at {groundswell.gateway.url}" in lines, "on the port that it runs on"


def test_the_doctor_says_how_to_mend_what_is_broken(groundswell: Commands, tmp_path: Path) -> None:
    """Exit status 1, and below each finding what to do."""
    broken = {"GROUNDSWELL_VIDEO_FFMPEG": "/nonexistent/ffmpeg", "GROUNDSWELL_URL": "http://127.0.0.1:9"}
    done = groundswell("doctor", env=broken | {"GROUNDSWELL_API_KEY": "gsw_x"})
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "Traceback" not in done.stderr
    mends = {line[6:].split()[0]: lines[at + 1] for at, line in enumerate(lines) if line.startswith("MEND")}
    assert "video.ffmpeg" in mends["ffmpeg"]
    assert "groundswell up" in mends["gateway"]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "profile.json").write_text(json.dumps({"base_url": "http://127.0.0.1:9", "api_key": "gsw_x"}))
    (folder / "profile.json").chmod(0o644)
    done = run(folder, "doctor")
    assert done.returncode == 1
    assert f"chmod 600 {folder}/profile.json" in done.stdout


def test_the_doctor_looks_at_the_port_that_up_would_take(tmp_path: Path) -> None:
    """Before the first start, the commonest trouble is another program on the port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run(tmp_path, "doctor", env={"GROUNDSWELL_GATEWAY_PORT": str(port)})
        assert done.returncode == 1
        assert f"port {port} is taken" in done.stdout
        assert "groundswell up --port" in done.stdout
    done = run(tmp_path, "doctor", env={"GROUNDSWELL_GATEWAY_PORT": str(port)})
    assert f"port {port} is free" in done.stdout
    assert done.returncode == 0, done.stdout


def test_the_profile_is_for_its_owner_only(groundswell: Commands) -> None:
    """It holds a key with every scope."""
    assert (groundswell.folder / "profile.json").stat().st_mode & 0o777 == 0o600
    assert groundswell.folder.stat().st_mode & 0o777 == 0o700


# --- what goes wrong before anything starts ---


def test_the_version_is_the_package_s(tmp_path: Path) -> None:
    """One line, for bug reports."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    said = run(tmp_path, "version")
    assert said.returncode == 0
    assert said.stdout.startswith(f"groundswell {project['version']} (Python 3.")


def test_without_a_gateway_commands_say_how_to_start_one(tmp_path: Path) -> None:
    """The first thing a newcomer tries may be chat."""
    for command in (("chat", "hi"), ("status",), ("jobs", "list"), ("nodes", "list")):
        done = run(tmp_path, *command)
        assert done.returncode == 1
        assert "groundswell up" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_gateway_that_is_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    """The profile outlives the gateway."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{one.getsockname()[1]}"
    done = run(tmp_path, "status", env={"GROUNDSWELL_URL": url, "GROUNDSWELL_API_KEY": "gsw_x"})
    assert done.returncode == 1
    assert url in done.stderr
    assert "groundswell up" in done.stderr


def test_a_wrong_key_is_said_to_be_wrong(groundswell: Commands) -> None:
    """It is the key, not the gateway."""
    said = groundswell.bad("status", env={"GROUNDSWELL_API_KEY": "gsw_wrong"})
    assert "key" in said
    assert "invalid_api_key" in said
    assert "gsw_wrong" not in said


def test_an_unknown_setting_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    """In the file and in the environment; before anything starts."""
    file = tmp_path / "settings.toml"
    file.write_text("[gateway]\nprot = 1\n")
    done = run(tmp_path, "--config", str(file), "up")
    assert done.returncode == 1
    assert "gateway.prot" in done.stderr
    assert "gateway.port" in done.stderr
    done = run(tmp_path, "up", env={"GROUNDSWELL_GATEWAY_PROT": "1"})
    assert done.returncode == 1
    assert "GROUNDSWELL_GATEWAY_PORT" in done.stderr
    done = run(tmp_path, "--config", str(tmp_path / "missing.toml"), "up")
    assert done.returncode == 1
    assert "missing.toml" in done.stderr


def test_an_unknown_command_is_refused(tmp_path: Path) -> None:
    """Usage errors have exit status 2, as everywhere."""
    done = run(tmp_path, "stauts")
    assert done.returncode == 2
    assert "stauts" in done.stderr
    assert "status" in done.stderr
    assert run(tmp_path, "serve", "nonesuch").returncode == 2
    assert run(tmp_path, "chat", "--nonesuch").returncode == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_on_a_taken_port_says_so(tmp_path: Path, engine: str) -> None:
    """Whoever starts engines by hand picks ports by hand."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = run(tmp_path, "serve", engine, "--port", port)
    assert done.returncode == 1
    assert done.stderr == (
        f"Port {port} of 127.0.0.1 cannot be had (Address already in use). Choose another with --port.\n"
    )


def test_help_needs_no_working_settings(tmp_path: Path) -> None:
    """Whoever has broken the settings reads the help next."""
    assert run(tmp_path, "up", "--help", env={"GROUNDSWELL_NONESUCH": "1"}).returncode == 0


def test_commands_start_fast_enough_to_be_typed(tmp_path: Path) -> None:
    """Help and the small commands must not load the gateway: counted in modules, not in time."""
    script = (
        "import sys; sys.argv = ['groundswell', 'version']\n"
        "from groundswell.__main__ import main\nmain()\n"
        "heavy = {'sqlalchemy', 'onnxruntime', 'numpy', 'starlette', 'av', 'httpx'}\n"
        "print(sorted(set(sys.modules) & heavy))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
