"""The video endpoints: uploads, transcodes, and the files that come out of them.

A result is reached in two ways: with an API key, or through a path that holds an unguessable token and
needs none, so that a player can follow the relative addresses in a playlist. Whoever has that path can
watch; that is what it is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from groundswell.gateway import prescan
from groundswell.gateway.app import answer
from groundswell.gateway.multipart import read_form
from groundswell.gateway.pipeline import JSON_BYTES_MAX, access, too_large
from groundswell.gateway.transcodes import FILE, JOB_ID, KIND, TOKEN, Transcodes
from groundswell.media.hls import CONTENT_TYPES
from groundswell.media.ladder import DEFAULT, parse
from groundswell.media.probe import probe
from groundswell.model.errors import BadRequest, NotFound, RangeNotSatisfiable
from groundswell.model.money import dollars
from groundswell.store.blobs import Blob
from groundswell.store.jobs import Job, JobState, NewJob, TaskState
from groundswell.store.jobs import Task as Claim
from groundswell.store.keys import Principal, Scope
from groundswell.wire.fetch import Fetcher

UPLOAD_BYTES_MAX = 1 << 40  # The ceiling of what settings may allow; they say how much really.
LIST_MAX = 100
PROBES_MAX = 2  # Children that look at uploads at a time.
KEY_CHARACTERS_MAX = 255
_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{0,15})\Z")
# A result never changes once it is there, and its address is a secret that anyone may hold.
_HEADERS = {"cache-control": "public, max-age=31536000, immutable", "access-control-allow-origin": "*"}


def routes(
    transcodes: Transcodes, fetcher: Fetcher | None = None, default_ladder: Sequence[str] = DEFAULT
) -> list[Route]:
    """The routes, for ``app.application``. Without a fetcher no source may be given by URL."""
    video = _Video(transcodes, fetcher, list(default_ladder))
    job = "/v1/transcodes/{job_id}"
    return [
        Route("/v1/blobs", video.upload, methods=["POST"]),
        Route("/v1/transcodes", video.create, methods=["POST"]),
        Route("/v1/transcodes", video.list),
        Route(job, video.get),
        Route(job, video.delete, methods=["DELETE"]),
        Route(job + "/cancel", video.cancel, methods=["POST"]),
        Route(job + "/files/{path:path}", video.file),
        Route(job + "/hls/{token}/{path:path}", video.play),
    ]


class _Video:
    """The endpoints."""

    def __init__(self, transcodes: Transcodes, fetcher: Fetcher | None, ladder: list[str]) -> None:
        self._transcodes, self._fetcher, self._ladder = transcodes, fetcher, ladder
        self._jobs, self._blobs = transcodes.jobs, transcodes.blobs
        self._probes = asyncio.Semaphore(PROBES_MAX)

    @access(Scope.VIDEO, UPLOAD_BYTES_MAX)
    async def upload(self, request: Request) -> Response:
        blob = await self._keep(_body(request), _caller(request).tenant)
        shown = {"id": blob.id, "object": "blob", "bytes": blob.size_bytes, "sha256": blob.sha256}
        return answer(shown, 201)

    @access(Scope.VIDEO, UPLOAD_BYTES_MAX)
    async def create(self, request: Request) -> Response:
        caller = _caller(request)
        key = _idempotency_key(request)
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            job = await self._from_form(request, caller, key)
        else:
            job = await self._from_json(await _small(request), caller, key)
        return answer(await self._shown(request, job), 202)

    @access(Scope.VIDEO)
    async def list(self, request: Request) -> Response:
        tenant = _caller(request).tenant
        try:
            limit = int(request.query_params.get("limit", "20"))
        except ValueError:
            limit = 0
        if not 1 <= limit <= LIST_MAX:
            raise BadRequest(f"limit must be 1 to {LIST_MAX}.", param="limit")
        page = await self._jobs.list(tenant, limit + 1, request.query_params.get("after"))
        page, more = page[:limit], len(page) > limit
        data = [await self._brief(request, job) for job in page]
        return answer({"object": "list", "data": data, "has_more": more})

    @access(Scope.VIDEO)
    async def get(self, request: Request) -> Response:
        return answer(await self._shown(request, await self._job(request)))

    @access(Scope.VIDEO)
    async def cancel(self, request: Request) -> Response:
        job = await self._job(request)
        return answer(await self._shown(request, await self._transcodes.cancel(job.id, job.tenant)))

    @access(Scope.VIDEO)
    async def delete(self, request: Request) -> Response:
        """Cancel it if it is open, and remove its files; the record stays for as long as records do."""
        job = await self._job(request)
        job = await self._transcodes.cancel(job.id, job.tenant)
        await self._transcodes.discard(job.id)
        return answer(await self._shown(request, job))

    @access(Scope.VIDEO)
    async def file(self, request: Request) -> Response:
        job = await self._job(request)
        return await self._send(request, job.id, job.request["token"], request.path_params["path"])

    @access(None)
    async def play(self, request: Request) -> Response:
        # The folder's name is the token: no store is asked, and no other name leads anywhere.
        return await self._send(request, *(request.path_params[name] for name in ("job_id", "token", "path")))

    # --- creating ---

    async def _keep(self, body: AsyncIterator[bytes], tenant: str) -> Blob:
        return await self._blobs.put(body, tenant, self._transcodes.settings.upload_bytes)

    async def _from_form(self, request: Request, caller: Principal, key: str | None) -> Job:
        form = await read_form(
            _body(request),
            request.headers["content-type"],
            lambda stream: self._keep(stream, caller.tenant),
        )
        try:
            unknown = set(form.fields) - {"ladder"}
            if unknown or form.file is None:
                raise BadRequest(
                    "The form has one part 'file', and may have a field 'ladder' (JSON).", param="file"
                )
            wanted = _json(form.fields["ladder"]) if "ladder" in form.fields else None
            return await self._accept(caller, wanted, key, form.file.sha256, blob_id=form.file.id)
        finally:
            if form.file is not None:
                with contextlib.suppress(NotFound):
                    self._blobs.delete(form.file.id, caller.tenant)

    async def _from_json(self, body: dict[str, Any], caller: Principal, key: str | None) -> Job:
        unknown = set(body) - {"input", "ladder"}
        if unknown:
            raise BadRequest(f"Unknown field {sorted(unknown)[0]!r}.", param=sorted(unknown)[0][:64])
        source = body.get("input")
        if not isinstance(source, dict) or len(source) != 1 or not set(source) <= {"blob", "url"}:
            raise BadRequest('input must be {"blob": id} or {"url": address}.', param="input")
        kind, value = next(iter(source.items()))
        if not isinstance(value, str):
            raise BadRequest(f"input.{kind} must be a string.", param=f"input.{kind}")
        given = {"blob_id": value} if kind == "blob" else {"url": value}
        return await self._accept(caller, body.get("ladder"), key, f"{kind}:{value}", **given)

    async def _accept(
        self,
        caller: Principal,
        wanted: Any,
        key: str | None,
        digest: str,
        *,
        blob_id: str = "",
        url: str | None = None,
    ) -> Job:
        """Look at the source, commit the job; the answer goes out only after that."""
        wanted = self._ladder if wanted is None else wanted
        parse(wanted)
        request = {"ladder": wanted, "token": secrets.token_urlsafe(24)}
        job_id = self._transcodes.new_id()
        if url is not None:
            if self._fetcher is None:
                raise BadRequest("Sources by URL are switched off here; upload the file.", param="input.url")
            await self._fetcher.check(url)
            request["url"] = url
        else:
            path = self._blobs.path(blob_id, caller.tenant)
            async with self._probes:
                await probe(path, self._transcodes.settings.limits)
            await self._transcodes.adopt(job_id, path)
        job = NewJob(caller.tenant, caller.key_id, KIND, request, job_id)
        body_hash = hashlib.sha256(digest.encode() + b"\0" + _canonical(wanted)).hexdigest()
        made, _ = await self._transcodes.accept(job, None if key is None else (key, body_hash))
        return made

    # --- showing ---

    async def _job(self, request: Request) -> Job:
        return await self._jobs.get(request.path_params["job_id"], _caller(request).tenant)

    async def _send(self, request: Request, job_id: str, token: str, name: str) -> Response:
        path = self._transcodes.result_folder(job_id, token) / name
        fits = JOB_ID.match(job_id) and TOKEN.match(token) and FILE.match(name)
        if not fits or not await asyncio.to_thread(path.is_file):
            raise NotFound("No such file.", code="file_not_found")
        _check_range(request, path.stat().st_size)
        return FileResponse(path, headers=_HEADERS, media_type=CONTENT_TYPES[path.suffix])

    async def _brief(self, request: Request, job: Job) -> dict[str, Any]:
        done, total = await self._jobs.progress(job.id)
        # One more: the last task is only known once the others are done.
        return self._base(request, job, done / (total + 1))

    async def _shown(self, request: Request, job: Job) -> dict[str, Any]:
        tasks = await self._jobs.tasks(job.id)
        prepared = next((task.result for task in tasks if task.kind == "prepare" and task.result), None)
        segments = [task for task in tasks if task.kind == "segment"]
        progress = _progress(prepared, segments, self._transcodes.underway_ms(job.id))
        shown = self._base(request, job, progress)
        if prepared is not None:
            info = prepared["info"]
            shown["source"] = {**info, "duration_s": prepared["duration_ms"] / 1000}
            shown["ladder"] = prepared["rungs"]
        shown["segments"] = [_segment(task, segments[0]) for task in segments]
        shown["audio"] = next((_segment(task, task) for task in tasks if task.kind == "audio"), None)
        shown["files"] = (job.result or {}).get("files", []) if shown["playback_url"] else []
        return shown

    def _base(self, request: Request, job: Job, progress: float) -> dict[str, Any]:
        done = job.state is JobState.DONE
        token = job.request["token"]
        playable = done and (self._transcodes.result_folder(job.id, token) / "master.m3u8").is_file()
        path = f"v1/transcodes/{job.id}/hls/{token}/master.m3u8"
        return {
            "id": job.id,
            "object": "transcode",
            "status": job.state.value,
            "created_at": job.created_ms // 1000,
            "finished_at": None if job.finished_ms is None else job.finished_ms // 1000,
            "progress": 1.0 if done else round(min(progress, 0.99), 4),
            "eta_s": _eta_s(job, progress),
            "cost_nano": job.cost_nano,
            "cost": dollars(job.cost_nano),
            "error": job.error,
            "playback_url": f"{request.base_url}{path}" if playable else None,
        }


def _progress(prepared: dict[str, Any] | None, segments: list[Claim], underway: dict[int, int]) -> float:
    """The share of the picture that is done, in media time."""
    if prepared is None:
        return 0.0
    done_ms = 0.0
    for task in segments:
        length_ms = (task.spec["task"]["end"] - task.spec["task"]["start"]) / 90
        done_ms += length_ms if task.state is TaskState.DONE else min(length_ms, underway.get(task.number, 0))
    return done_ms / max(1.0, float(prepared["duration_ms"]))


def _eta_s(job: Job, progress: float) -> float | None:
    """What is left, at the mean pace since the job was accepted."""
    if job.state is not JobState.RUNNING or progress <= 0:
        return None
    elapsed_s = max(0.0, time.time() - job.created_ms / 1000)
    return round(elapsed_s * (1 - min(progress, 1)) / progress, 1)


def _segment(task: Claim, first: Claim) -> dict[str, Any]:
    """``first`` begins the time line; inside, and in the files, that begins at ten seconds."""
    spec, result = task.spec["task"], task.result or {}
    start = spec["start"] - first.spec["task"]["start"]
    return {
        "number": task.number,
        "status": task.state.value,
        "start_s": round(start / 90_000, 6),
        "duration_s": round((spec["end"] - spec["start"]) / 90_000, 6),
        "node": result.get("node"),
        "engine": result.get("engine"),
        "attempts": task.attempts,
        "error": task.error,
    }


def _caller(request: Request) -> Principal:
    caller: Principal = request.state.principal
    return caller


def _check_range(request: Request, size: int) -> None:
    """Leave the one range that a player asks for. Several at once, and what is none, are ignored, as HTTP
    allows: the answer is the whole file. Raises ``RangeNotSatisfiable``."""
    match = _RANGE.match(request.headers.get("range", ""))
    if match is None or (match[2] and int(match[1]) > int(match[2])):
        request.scope["headers"] = [line for line in request.scope["headers"] if line[0] != b"range"]
    elif int(match[1]) >= size:
        raise RangeNotSatisfiable(f"The file has {size} bytes.")


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= KEY_CHARACTERS_MAX:
        raise BadRequest(
            f"Idempotency-Key must have 1 to {KEY_CHARACTERS_MAX} characters.", code="invalid_header"
        )
    return key


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect as error:
        raise BadRequest("The upload was broken off.", code="upload_incomplete") from error


async def _small(request: Request) -> dict[str, Any]:
    """A JSON body, bounded here because this endpoint also takes whole files."""
    body = b""
    async for piece in _body(request):
        body += piece
        if len(body) > JSON_BYTES_MAX:
            raise too_large(JSON_BYTES_MAX)
    return prescan.decode(body)


def _json(text: str) -> Any:
    try:
        return prescan.decode_value(text.encode())
    except BadRequest as error:
        raise BadRequest("ladder is not valid JSON.", param="ladder") from error


def _canonical(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")
