"""Durable transcodes: from an uploaded file to a finished HLS ladder, through any number of deaths.

Theory of operation. A job is a chain of tasks in the store. ``prepare`` cuts the source into segments and
adds one ``segment`` task each, and one ``audio`` task; whichever of those ends last adds ``finish``, which
writes the playlists and ends the job. A worker holds a lease on its task and renews it; a result is on the
disk, synced, before its task is completed, and completing it settles its usage in the same transaction. So
a kill at any moment costs at most the work that was under way: a task that was not completed is claimed
again, one that was is never done or charged twice (its id is the id of its usage row).

A segment is one work for the dispatcher, which already moves it when a node dies. What comes back here as
failed has failed on more than one node; it is tried again as a whole a few times and then ends the job with
a reason. Waiting for capacity is not failing.

On the disk, below one folder: ``JOB/source`` the input, ``JOB/work`` its segments, ``JOB/TOKEN`` the
result.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from groundswell.core.contract import Finish, Reason
from groundswell.engines.transcode import MODEL, PartReader
from groundswell.gateway import errors
from groundswell.gateway.relay import Relay
from groundswell.media import package, probe
from groundswell.media.demux import MediaInfo, Split
from groundswell.media.encode import TICKS_PER_S, Task
from groundswell.media.ladder import ladder
from groundswell.model.errors import GroundswellError, InternalError, Overloaded, UpstreamError
from groundswell.model.messages import Offer, Output
from groundswell.model.money import Usage
from groundswell.model.work import Kind, Work, WorkClass, WorkState
from groundswell.ports import Payload
from groundswell.store.blobs import Blobs
from groundswell.store.jobs import OPEN_JOB, Job, Jobs, JobState, NewJob, NewTask, TaskState
from groundswell.store.jobs import Task as Claim
from groundswell.store.ledger import UsageRow

_log = logging.getLogger(__name__)

KIND = "transcode"
LEASE_S = 30.0
CLAIM_WAIT_S = 1.0  # How soon work that another gateway accepted is seen.
WORKERS_MIN = 2
WORKERS_MAX = 64
ATTEMPTS_MAX = 3
WAIT_S = 600.0  # How long a segment may wait for a node before it is offered anew.
CAPACITY_PAUSE_S = 2.0
FULL_PAUSE_S = 5.0  # While the disk is full.
ANSWER_BYTES_MAX = 1 << 30
JOB_ID = re.compile(r"job_[0-9a-f]{24}\Z")
TOKEN = re.compile(r"[A-Za-z0-9_-]{32}\Z")
FILE = re.compile(r"(master\.m3u8|[a-z0-9]{1,16}/(index\.m3u8|init-[0-9a-f]{16}\.mp4|[0-9]{5}\.m4s))\Z")
# Ends that say nothing about the segment: there was no room, or the gateway is closing.
_NO_CAPACITY = frozenset(
    {Reason.NO_NODE, Reason.UNKNOWN_MODEL, Reason.QUEUE_FULL, Reason.DEADLINE, "shutting_down"}
)
_HOPELESS = frozenset({Reason.POISON, Reason.REJECTED})


class Fetch(Protocol):
    """What fetches a URL for a job; ``wire.fetch.Fetcher``."""

    def fetch(self, url: str, limit_bytes: int) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """``workers_max`` bounds the segments under way; ``upload_bytes`` also bounds what is fetched;
    ``id_prefix`` begins the ids of this gateway's works."""

    segment_s: float = 4.0
    attempts: int = ATTEMPTS_MAX
    upload_bytes: int = 10 << 30
    keep_s: float = 7 * 86_400.0
    workers_max: int = WORKERS_MAX
    id_prefix: str = ""
    limits: probe.MediaLimits = probe.LIMITS


class Lost(Exception):
    """The lease is gone: the job was cancelled, or another worker has the task."""


@dataclass(slots=True)
class _Worker:
    """One claimed task under way. ``media_ms`` is how far it has come.

    ``works`` counts what nodes were sent for it. Each has an id of its own: a node answers an offer that
    it knows with the end it had.
    """

    claim: Claim
    task: asyncio.Task[None]
    media_ms: int = 0
    works: int = 0
    lost: bool = False


@dataclass(slots=True)
class _Result:
    """A segment's files, as they came, and who made them."""

    finish: Finish
    files: list[bytes] = field(default_factory=list)


class Transcodes:
    """Runs the transcode jobs of a store. ``run`` works until it is cancelled.

    ``owner`` names this gateway in leases; ``fetcher`` is None when sources may not be given by URL.
    ``on_job`` hears what became of each job: created, done, failed or cancelled.
    """

    def __init__(
        self, jobs: Jobs, blobs: Blobs, relay: Relay, root: Path, owner: str,
        fetcher: Fetch | None = None, settings: Settings = Settings(),
        on_job: Callable[[str], None] = lambda _state: None,
    ) -> None:  # fmt: skip
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.jobs, self.blobs, self.fetcher, self.settings = jobs, blobs, fetcher, settings
        self._relay, self._root, self._owner = relay, root, owner
        self._on_job = on_job
        self._workers: dict[str, _Worker] = {}
        self._wake = asyncio.Event()

    # --- the front door's side ---

    def new_id(self) -> str:
        """An id for a job that is about to be created."""
        return f"job_{secrets.token_hex(12)}"

    async def adopt(self, job_id: str, source: Path) -> None:
        """Give a job its source: the file is linked or copied, so that its blob may go."""
        await asyncio.to_thread(package.adopt, self._root / job_id, source)

    async def accept(self, job: NewJob, idempotency: tuple[str, str] | None) -> tuple[Job, bool]:
        """Commit a job and start on it; see ``Jobs.create``. Its files go when it is not new after all."""
        created, is_new = False, False
        try:
            made, is_new = await self.jobs.create(job, [NewTask("prepare")], idempotency)
            created = True
        finally:
            if not (created and is_new):
                await self.discard(job.id)
        if is_new:
            self._on_job("created")
        self._wake.set()
        return made, is_new

    async def cancel(self, job_id: str, tenant: str | None) -> Job:
        """End a job and stop what runs for it, now. Raises ``NotFound``."""
        was_open = (await self.jobs.get(job_id, tenant)).state in OPEN_JOB
        job = await self.jobs.cancel(job_id, tenant)
        if was_open:
            self._on_job(job.state)
        for worker in list(self._workers.values()):
            if worker.claim.job_id == job_id:
                worker.lost = True
                worker.task.cancel()
        if job.state is not JobState.DONE:
            await self.discard(job_id)
        return job

    async def discard(self, job_id: str) -> None:
        """Remove all files of a job."""
        await asyncio.to_thread(shutil.rmtree, self._root / job_id, True)

    def result_folder(self, job_id: str, token: str) -> Path:
        """Where the result of a job lies."""
        return self._root / job_id / token

    def underway_ms(self, job_id: str) -> dict[int, int]:
        """How far the segments that run here have come: number to media milliseconds."""
        return {
            worker.claim.number: worker.media_ms
            for worker in self._workers.values()
            if worker.claim.job_id == job_id and worker.claim.kind == "segment"
        }

    # --- the workers' side ---

    async def run(self) -> None:
        """Claim and do tasks until cancelled. What was under way then is taken up again by the next start."""
        try:
            while True:
                self._wake.clear()
                free = self._capacity() - len(self._workers)
                claims = []
                if free > 0:
                    try:
                        claims = await self.jobs.claim(self._owner, LEASE_S, free, KINDS)
                    except GroundswellError:
                        _log.warning("claiming tasks failed", exc_info=True)
                for claim in claims:
                    if claim.id in self._workers:  # Its lease ran out while the store could not be written.
                        self._workers[claim.id].task.cancel()
                    task = asyncio.create_task(self._work(claim))
                    self._workers[claim.id] = _Worker(claim, task)
                    task.add_done_callback(functools.partial(self._done, claim.id))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLAIM_WAIT_S):
                        await self._wake.wait()
        finally:
            tasks = [worker.task for worker in self._workers.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def sweep(self) -> int:
        """Remove jobs that ended long ago, their files, and files that belong to no job; how many jobs."""
        forgotten = await self.jobs.forget(self.settings.keep_s)
        for job_id in forgotten:
            await self.discard(job_id)
        for path in await asyncio.to_thread(lambda: list(self._root.iterdir())):
            # A folder is made shortly before its job is committed: only old ones can be orphans.
            if time.time() - path.stat().st_mtime > 3600 and JOB_ID.match(path.name):
                try:
                    await self.jobs.get(path.name)
                except GroundswellError as error:
                    if error.code == "job_not_found":
                        await self.discard(path.name)
        return len(forgotten)

    def _capacity(self) -> int:
        """As many at a time as there are slots for them, and one more so that no slot waits for us."""
        slots = sum(
            engine.slots
            for view in self._relay.nodes()
            for engine in view.report.engines
            if engine.healthy
            and any(Kind.TRANSCODE in capability.kinds for capability in engine.capabilities)
        )
        return min(max(WORKERS_MIN, slots + 1), self.settings.workers_max)

    def _done(self, task_id: str, task: asyncio.Task[None]) -> None:
        if task_id in self._workers and self._workers[task_id].task is task:
            del self._workers[task_id]
        self._wake.set()

    async def _work(self, claim: Claim) -> None:
        """Do one task under its lease; whatever happens ends in the store, or in a lease that runs out."""
        renewing = asyncio.create_task(self._renew(claim, asyncio.current_task()))
        try:
            while not await self._had_room(claim):
                pass
        except Lost:
            _log.info("a lease was lost", extra={"task_id": claim.id})
        except GroundswellError as error:
            await self._failed(claim, error)
        except OSError:
            _log.exception("a task met a file error", extra={"task_id": claim.id})
            await self._failed(claim, InternalError("The gateway's storage failed.", code="storage_failed"))
        except Exception:
            _log.exception("a task failed", extra={"task_id": claim.id})
            await self._failed(claim, InternalError("The gateway failed on this job."))
        finally:
            renewing.cancel()

    async def _had_room(self, claim: Claim) -> bool:
        """Do the task. False, after a pause, when the disk is full: what was accepted waits for room."""
        try:
            await getattr(self, f"_{claim.kind}")(claim)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        except Overloaded as error:
            if error.code not in ("storage_full", "store_unavailable"):
                raise
        else:
            return True
        _log.warning("no room on the disk: a task waits", extra={"task_id": claim.id})
        await asyncio.sleep(FULL_PAUSE_S)
        return False

    async def _renew(self, claim: Claim, holder: asyncio.Task[None] | None) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 4)
            try:
                held = await self.jobs.renew(claim.id, claim.fence, LEASE_S)
            except GroundswellError:
                continue  # The store may come back before the lease ends; the fence settles who was right.
            if not held:
                if holder is not None:
                    holder.cancel()
                return

    async def _failed(self, claim: Claim, error: GroundswellError) -> None:
        """Try again a few times when that can help; otherwise the job has failed, and says why."""
        again = error.retry or isinstance(error, InternalError)
        if again and claim.attempts < self.settings.attempts:
            await asyncio.sleep(claim.attempts)
        where = f"segment {claim.number}: " if claim.kind == "segment" else ""
        told = {"code": error.code, "message": where + error.message}
        attempts = self.settings.attempts if again else 0
        with contextlib.suppress(GroundswellError):
            state = await self.jobs.retry(claim.id, claim.fence, told, attempts)
            if state is TaskState.FAILED:
                self._on_job(JobState.FAILED)
                await self._stop_others(claim.job_id)

    async def _stop_others(self, job_id: str) -> None:
        for worker in list(self._workers.values()):
            if worker.claim.job_id == job_id and worker.task is not asyncio.current_task():
                worker.task.cancel()
        await self.discard(job_id)

    # --- prepare ---

    async def _prepare(self, claim: Claim) -> None:
        job = await self.jobs.get(claim.job_id)
        folder = self._root / job.id
        if not (folder / "source").exists():
            await self._fetch(job)
        await asyncio.to_thread(package.fresh, folder / "work")
        info, split = await probe.split(
            folder / "source", folder / "work", self.settings.segment_s, self.settings.limits
        )
        await asyncio.to_thread(package.sync_folder, folder / "work")
        tasks = _tasks(info, split, job.request.get("ladder"))
        result = {
            "info": msgspec.to_builtins(info), "rate": split.rate, "rungs": tasks[0].spec["task"]["rungs"],
            "duration_ms": sum(_ms(chunk.end - chunk.start) for chunk in split.chunks),
            "segments": len(split.chunks),
        }  # fmt: skip
        if not await self.jobs.complete(claim.id, claim.fence, result, new_tasks=tasks):
            raise Lost
        # The segments hold all of it now.
        await asyncio.to_thread((folder / "source").unlink, True)

    async def _fetch(self, job: Job) -> None:
        """Bring the source of a job that was given by URL."""
        url = job.request.get("url")
        if url is None or self.fetcher is None:
            raise InternalError("The source of this job is gone.", code="source_missing")
        limit = self.settings.upload_bytes
        stream = self.fetcher.fetch(url, limit)
        try:
            blob = await self.blobs.put(stream, job.tenant, limit)
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
        await self.adopt(job.id, self.blobs.path(blob.id, job.tenant))
        self.blobs.delete(blob.id, job.tenant)

    # --- segment and audio ---

    async def _segment(self, claim: Claim) -> None:
        task = msgspec.convert(claim.spec["task"], Task)
        job = await self.jobs.get(claim.job_id)
        result = await self._dispatch(claim, job, task)
        folder = self.result_folder(job.id, job.request["token"])
        outputs = await asyncio.to_thread(package.keep_video, folder, claim.number, task, result.files)
        await self._complete(claim, job, task, result, outputs)

    async def _audio(self, claim: Claim) -> None:
        task = msgspec.convert(claim.spec["task"], Task)
        job = await self.jobs.get(claim.job_id)
        result = await self._dispatch(claim, job, task)
        folder = self.result_folder(job.id, job.request["token"])
        output = await asyncio.to_thread(package.keep_audio, folder, claim.spec["cuts"], result.files)
        await self._complete(claim, job, task, result, output)

    async def _complete(self, claim: Claim, job: Job, task: Task, result: _Result, outputs: Any) -> None:
        finish = result.finish
        row = UsageRow(
            work_id=claim.id, tenant=job.tenant, key_id=job.key_id, kind=Kind.TRANSCODE, model=MODEL,
            created_ms=int(time.time() * 1000), node_id=finish.node_id, engine_id=finish.engine_id,
            # Counted in the files that lie here now, not believed.
            usage=task.usage() if claim.kind == "segment" else Usage(media_ms=task.usage().media_ms),
            price=finish.price, attempts=max(1, finish.attempts),
        )  # fmt: skip
        told = {"node": finish.node_id, "engine": finish.engine_id, "outputs": outputs}
        if not await self.jobs.complete(claim.id, claim.fence, told, row, then=[NewTask("finish")]):
            raise Lost
        await asyncio.to_thread((self._root / job.id / "work" / claim.spec["file"]).unlink, True)

    async def _dispatch(self, claim: Claim, job: Job, task: Task) -> _Result:
        """Have it done by some node; wait for as long as there is none."""
        data = await asyncio.to_thread((self._root / job.id / "work" / claim.spec["file"]).read_bytes)
        worker = self._workers[claim.id]
        while True:
            worker.works += 1
            exchange = _Exchange(claim.spec["task"], data, worker)
            work = Work(
                id=f"{self.settings.id_prefix}{claim.id}.{claim.fence}.{worker.works}",
                kind=Kind.TRANSCODE, model=MODEL, tenant=job.tenant,
                deadline_s=asyncio.get_running_loop().time() + WAIT_S, work_class=WorkClass.BATCH,
                pixels=task.usage().pixels,
            )  # fmt: skip
            try:
                self._relay.submit(work, exchange)
                result, error = await exchange.result
            except asyncio.CancelledError:
                self._relay.cancel(work.id)
                raise
            if result.finish.state is WorkState.DONE:
                return result
            if result.finish.reason not in _NO_CAPACITY:
                raise _failure(result.finish, error)
            await asyncio.sleep(result.finish.retry_after_s or CAPACITY_PAUSE_S)

    # --- finish ---

    async def _finish(self, claim: Claim) -> None:
        job = await self.jobs.get(claim.job_id)
        claims = await self.jobs.tasks(claim.job_id)
        segments = [one for one in claims if one.kind == "segment"]
        tasks = [msgspec.convert(one.spec["task"], Task) for one in segments]
        outputs = [one.result["outputs"] for one in segments if one.result]
        sound = [
            output for one in claims if one.kind == "audio" and one.result for output in one.result["outputs"]
        ]
        folder = self.result_folder(job.id, job.request["token"])
        files = await asyncio.to_thread(package.write_playlists, folder, tasks, outputs, sound)
        ended = await self.jobs.complete(
            claim.id, claim.fence, {}, finish_job=JobState.DONE, job_result={"files": files}
        )
        if not ended:
            raise Lost
        self._on_job(JobState.DONE)
        await asyncio.to_thread(shutil.rmtree, self._root / job.id / "work", True)


KINDS = ("prepare", "segment", "audio", "finish")


class _Exchange:
    """The gateway's half of one segment; see ``ports.Exchange``."""

    def __init__(self, task: dict[str, Any], data: bytes, worker: _Worker) -> None:
        self.result: asyncio.Future[tuple[_Result, GroundswellError | None]]
        self.result = asyncio.get_running_loop().create_future()
        self._task, self._data, self._worker = task, data, worker
        self._attempt, self._size, self._whole = -1, 0, False
        self._reader, self._files = PartReader(), list[bytes]()

    def payload(self, offer: Offer) -> Payload:
        return Payload(offer.kind, self._task, self._data)

    def deliver(self, output: Output, data: bytes) -> None:
        if output.attempt != self._attempt:
            # Nothing has gone out to anybody: a new attempt simply begins anew.
            self._attempt, self._size, self._whole = output.attempt, 0, False
            self._reader, self._files = PartReader(), []
        self._size += len(data)
        if self._size > ANSWER_BYTES_MAX:
            raise UpstreamError("A segment came back too large.", code="malformed_output")
        for kind, content in self._reader.feed(data):
            if kind == b"F":
                self._files.append(content)
            elif kind == b"P":
                self._worker.media_ms = _progress_ms(content)
            self._whole = self._whole or kind == b"D"

    def finish(self, finish: Finish, error: GroundswellError | None) -> None:
        if finish.state is WorkState.DONE and not self._whole:
            finish = replace(finish, state=WorkState.FAILED, reason=Reason.EXHAUSTED)
            error = UpstreamError("A segment came back incomplete.", code="malformed_output")
        if not self.result.done():
            self.result.set_result((_Result(finish, self._files), error))


def _progress_ms(content: bytes) -> int:
    with contextlib.suppress(msgspec.DecodeError, KeyError, TypeError, ValueError):
        return max(0, int(msgspec.json.decode(content)["media_ms"]))
    return 0


def _failure(finish: Finish, error: GroundswellError | None) -> GroundswellError:
    """What a segment's end means for its job. The engine's own words say more than ours."""
    general = errors.from_finish(finish, MODEL, error)
    if finish.reason in _HOPELESS and error is not None:
        general.message = f"{general.message} {error.message}"
    elif error is not None and error.code != general.code:
        return error
    return general


def _tasks(info: MediaInfo, split: Split, wanted: Any) -> list[NewTask]:
    """One task for each segment, and one for the whole of the sound."""
    rungs = ladder(info.width, info.height, split.rate[0] / split.rate[1], wanted)
    tasks = []
    for chunk in split.chunks:
        task = Task(
            kind="video", start=chunk.start, end=chunk.end, frames=chunk.frames,
            rate=split.rate, vfr=split.vfr, rotation=info.rotation, rungs=rungs,  # type: ignore[arg-type]
        )  # fmt: skip
        spec = {"task": msgspec.to_builtins(task), "file": chunk.file}
        tasks.append(NewTask("segment", chunk.index, spec))
    if split.audio_file is not None:
        cuts = [chunk.start for chunk in split.chunks] + [split.chunks[-1].end]
        task = Task(kind="audio", start=cuts[0], end=cuts[-1])
        tasks.append(
            NewTask("audio", 0, {"task": msgspec.to_builtins(task), "file": split.audio_file, "cuts": cuts})
        )
    return tasks


def _ms(ticks: int) -> int:
    return ticks * 1000 // TICKS_PER_S


__all__ = ["FILE", "JOB_ID", "KIND", "TOKEN", "Fetch", "Settings", "Transcodes"]
