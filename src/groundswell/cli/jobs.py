"""``groundswell transcode`` and ``groundswell jobs``: durable work, from this machine's files and back."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from groundswell.cli.client import AnswerError, Client
from groundswell.cli.profile import need_profile
from groundswell.cli.screen import out, paste, say, table
from groundswell.cli.settings import settings
from groundswell.model.errors import BadRequest
from groundswell.model.money import dollars

ENDS = frozenset({"done", "failed", "cancelled"})
POLL_S = 0.5
JOB_ID = Annotated[str, typer.Argument(help="The id as `jobs list` shows it.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    jobs = typer.Typer(help="See and cancel durable work (transcodes).", no_args_is_help=True)
    app.add_typer(jobs, name="jobs")

    @app.command()
    def transcode(
        file: Annotated[
            Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="A video file.")
        ],
        rungs: Annotated[
            str | None, typer.Option(help="Rungs such as 720p,360p; default: all that fit.")
        ] = None,
        output: Annotated[
            Path | None, typer.Option(help="Folder for the result; default: FILE's name + .hls.")
        ] = None,
        wait: Annotated[bool, typer.Option(help="Wait for the end and fetch the result.")] = True,
    ) -> None:
        """Upload a video, have it transcoded into an HLS ladder over all nodes, and fetch the result.

        Interrupting the wait does not stop the job: `groundswell jobs fetch ID` goes on with it.

        \b
          groundswell transcode holiday.mp4
          groundswell transcode holiday.mp4 --rungs 720p,360p --output web
        """
        client = Client(need_profile(settings.config.folder))
        job = submit(client, file, rungs)
        try:
            say(f"job {job['id']}")
            if not wait:
                return
            follow(client, job["id"])
            fetch_files(client, job["id"], output or file.with_suffix(".hls"))
        except KeyboardInterrupt:
            say(f"\nThe job goes on; `groundswell jobs fetch {job['id']}` waits for it again.")
            raise

    @jobs.command("list")
    def list_(limit: Annotated[int, typer.Option(help="So many at most.", min=1, max=100)] = 20) -> None:
        """The jobs, newest first: how far they are and what they cost."""
        client = Client(need_profile(settings.config.folder))
        page = client.call("GET", "/v1/transcodes", params={"limit": limit})
        rows = [
            [job["id"], job["status"], f"{job['progress']:.0%}", dollars(job["cost_nano"])]
            for job in page["data"]
        ]
        table(["id", "status", "progress", "cost"], rows)

    @jobs.command()
    def show(job_id: JOB_ID) -> None:
        """Everything known about a job, as JSON."""
        job = Client(need_profile(settings.config.folder)).call("GET", f"/v1/transcodes/{job_id}")
        paste(json.dumps(job, indent=2))

    @jobs.command()
    def fetch(
        job_id: JOB_ID,
        output: Annotated[
            Path | None, typer.Option(help="Folder for the result; default: the job's id + .hls.")
        ] = None,
    ) -> None:
        """Wait for a job and fetch its files. What is in the folder already is not fetched again."""
        client = Client(need_profile(settings.config.folder))
        follow(client, job_id)
        fetch_files(client, job_id, output or Path(f"{job_id}.hls"))

    @jobs.command()
    def cancel(job_id: JOB_ID) -> None:
        """Stop a job. What was done so far is charged, nothing more."""
        job = Client(need_profile(settings.config.folder)).call("POST", f"/v1/transcodes/{job_id}/cancel")
        say(f"{job['id']} {job['status']}")


def submit(client: Client, file: Path, rungs: str | None = None) -> dict[str, Any]:
    """Upload ``file`` as a blob and start its transcode; the job."""
    size = file.stat().st_size
    if size == 0:
        raise BadRequest(f"{file} is empty.", param="file")
    with _bar() as progress, file.open("rb") as source:
        task = progress.add_task(f"upload {file.name}", total=size)
        headers = {"content-type": "application/octet-stream"}
        blob = client.upload(
            "/v1/blobs", source, size, headers, lambda sent: progress.update(task, completed=sent)
        )
    request: dict[str, Any] = {"input": {"blob": blob["id"]}}
    if rungs:
        request["ladder"] = [rung.strip() for rung in rungs.split(",") if rung.strip()]
    # One key per upload: a request repeated by the network makes one job, not two.
    job: dict[str, Any] = client.call(
        "POST", "/v1/transcodes", json=request, headers={"idempotency-key": uuid.uuid4().hex}
    )
    return job


def follow(client: Client, job_id: str) -> dict[str, Any]:
    """Show the job's progress until it has ended; the job. Raises ``AnswerError`` when it failed."""
    with _bar() as progress:
        task = progress.add_task("transcode", total=1.0)
        while True:
            job: dict[str, Any] = client.call("GET", f"/v1/transcodes/{job_id}")
            progress.update(task, completed=job["progress"], description=f"transcode, {job['status']}")
            if job["status"] in ENDS:
                break
            time.sleep(POLL_S)
    if job["status"] != "done":
        reason = (job.get("error") or {}).get("message", "no reason given")
        raise AnswerError(f"The transcode {job['status']}: {reason}", code=job["status"])
    return job


def fetch_files(client: Client, job_id: str, folder: Path) -> None:
    """Download all files of a finished job. Those that are there are kept, so a broken fetch resumes."""
    job = client.call("GET", f"/v1/transcodes/{job_id}")
    with _bar() as progress:
        task = progress.add_task(f"fetch {len(job['files'])} files", total=len(job["files"]))
        for name in job["files"]:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                client.download(f"/v1/transcodes/{job_id}/files/{name}", target)
            progress.advance(task)
    paste(f"{folder}/master.m3u8")


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    # On a pipe there is no bar at all: half-drawn lines are noise there.
    return Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
