"""From an upload to a film that plays, over HTTP, with real nodes and a real store."""

from __future__ import annotations

import asyncio
import errno
import subprocess
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import sqlalchemy as sa
from video_world import VideoWorld

from clips import HOSTILE, clip
from groundswell.gateway import transcodes
from groundswell.media import fmp4, package
from groundswell.media.encode import ffmpeg_path
from groundswell.model.money import cost_nano
from groundswell.model.work import Work
from groundswell.store.keys import Principal, Scope
from groundswell.store.schema import usage as usage_table


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[VideoWorld]:
    world = await VideoWorld(tmp_path, segment_s=1.5).start()
    yield world
    await world.stop()


async def charges(world: VideoWorld) -> list[Any]:
    return await world.store.read(lambda c: c.execute(sa.select(usage_table)).all())


async def rendition(world: VideoWorld, job: dict[str, Any], name: str) -> bytes:
    """What a player appends: the header and every segment."""
    base = job["playback_url"].rsplit("/", 1)[0]
    text = (await world.client.get(f"{base}/{name}/index.m3u8")).text
    init = text.split('URI="')[1].split('"')[0]
    names = [init, *(line for line in text.splitlines() if line.endswith(".m4s"))]
    return b"".join([(await world.client.get(f"{base}/{name}/{one}")).content for one in names])


def decoded_frames(path: Path) -> int:
    """How many pictures ffmpeg decodes from a file, strictly."""
    command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-xerror", "-i", str(path), "-map", "0:v"]
    done = subprocess.run([*command, "-progress", "-", "-f", "null", "-"], check=True, capture_output=True)
    return int(done.stdout.split(b"frame=")[-1].split()[0])


async def test_an_upload_becomes_a_film_that_plays(world: VideoWorld, tmp_path: Path) -> None:
    """The main job: every frame, no seam, spread over the nodes, charged by the pixel."""
    answer = await world.submit("opengop.mp4", '["144p", {"height": 90}]')
    assert answer.status_code == 202
    assert answer.json()["status"] in ("queued", "running")
    job = await world.ended(answer.json()["id"])
    assert (job["status"], job["progress"], job["error"]) == ("done", 1.0, None)
    assert {segment["node"] for segment in job["segments"]} <= {"node-1", "node-2"}
    assert sum(segment["duration_s"] for segment in job["segments"]) == pytest.approx(6)
    master = await world.client.get(job["playback_url"])
    assert master.headers["content-type"] == "application/vnd.apple.mpegurl"
    assert "immutable" in master.headers["cache-control"]
    for name in ("144p", "90p"):
        whole = tmp_path / f"{name}.mp4"
        whole.write_bytes(await rendition(world, job, name))
        assert await asyncio.to_thread(decoded_frames, whole) == 180
        shown = sorted(one.time + one.offset for one in fmp4.samples(fmp4.split_init(whole.read_bytes())[1]))
        assert {after - before for before, after in pairwise(shown)} == {3000}
    sound = fmp4.samples(fmp4.split_init(await rendition(world, job, "audio"))[1])
    assert {after.time - before.time for before, after in pairwise(sound)} == {1024}
    pixels = 180 * (256 * 144 + 160 * 90)
    rows = await charges(world)
    assert sum(row.pixels for row in rows) == pixels
    assert job["cost_nano"] == sum(row.cost_nano for row in rows) >= 180 * 256 * 144 * 150 // 10**6
    assert len(rows) == len(job["segments"]) + 1


async def test_ffmpeg_plays_the_playlist_over_http(world: VideoWorld) -> None:
    """Relative addresses, content types and ranges as a player needs them."""
    job = await world.ended((await world.submit()).json()["id"])
    command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-xerror", "-i", job["playback_url"]]
    child = await asyncio.create_subprocess_exec(
        *command, "-map", "0:v", "-map", "0:a", "-f", "null", "-", stderr=asyncio.subprocess.PIPE
    )
    _, said = await child.communicate()
    assert (child.returncode, said) == (0, b"")
    part = await world.client.get(job["playback_url"], headers={"range": "bytes=0-6"})
    assert (part.status_code, part.content) == (206, b"#EXTM3U")


async def test_a_blob_is_uploaded_once_and_used_by_its_id(world: VideoWorld) -> None:
    """The command line uploads first and starts then."""
    blob = (await world.client.post("/v1/blobs", content=clip("plain.mp4").read_bytes())).json()
    assert blob["bytes"] == clip("plain.mp4").stat().st_size
    answer = await world.client.post(
        "/v1/transcodes", json={"input": {"blob": blob["id"]}, "ladder": ["144p"]}
    )
    assert answer.status_code == 202
    assert (await world.ended(answer.json()["id"]))["status"] == "done"


async def test_the_same_request_under_the_same_key_is_one_job(world: VideoWorld) -> None:
    """A client that repeats itself after a broken connection must not pay twice."""
    first = await world.submit(Idempotency_Key="k1")
    again = await world.submit(Idempotency_Key="k1")
    other = await world.submit("vfr.mp4", Idempotency_Key="k1")
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    await world.ended(first.json()["id"])
    page = (await world.client.get("/v1/transcodes")).json()
    assert [job["id"] for job in page["data"]] == [first.json()["id"]]


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_no_video_is_refused_before_anything_is_promised(world: VideoWorld, name: str) -> None:
    """422 in the one error shape, and nothing is left behind."""
    answer = await world.client.post(
        "/v1/transcodes", files={"file": ("film.mp4", HOSTILE[name], "video/mp4")}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "media_rejected")
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert (await world.client.get("/v1/transcodes")).json()["data"] == []
    assert world.transcodes.blobs.used_bytes == 0
    assert list((world.root / "video").iterdir()) == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"input": {}}, 400, "invalid_request"),
        ({"input": {"blob": "blob_" + "0" * 32}}, 404, "blob_not_found"),
        ({"input": {"blob": "../../etc/passwd"}}, 404, "blob_not_found"),
        ({"input": {"blob": 5}}, 400, "invalid_request"),
        ({"input": {"blob": "x", "url": "y"}}, 400, "invalid_request"),
        ({"input": {"url": "http://films.example/"}}, 400, "invalid_request"),
        ({"input": {"blob": "x"}, "ladder": ["9000p"]}, 400, "invalid_request"),
        ({"input": {"blob": "x"}, "filter": "movie=x"}, 400, "invalid_request"),
    ],
)
async def test_a_wrong_request_names_what_is_wrong(
    world: VideoWorld, body: dict[str, Any], status: int, code: str
) -> None:
    """Four keys, and never a 500."""
    answer = await world.client.post("/v1/transcodes", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("ladder", ["[" * 5000, "NaN", '"\\ud800"', '[{"height":240,"height":360}]', "", "7"])
async def test_a_ladder_in_a_form_is_as_strict_as_in_json(world: VideoWorld, ladder: str) -> None:
    """Nesting without end was a 500 here."""
    answer = await world.submit(ladder=ladder)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "ladder")


@pytest.mark.parametrize("content", [b"", b"--x\r\n", b"--x\r\n\r\nno name", b"garbage", b"--x--"])
async def test_a_form_that_is_no_form_is_the_clients_error(world: VideoWorld, content: bytes) -> None:
    """Parsers of others must not decide our status codes."""
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = await world.client.post("/v1/transcodes", content=content, headers=headers)
    assert answer.status_code == 400


async def test_cancelling_stops_the_work_at_once_and_removes_its_files(world: VideoWorld) -> None:
    """What was done is charged, nothing more is."""
    ladder = msgspec.json.encode([{"height": n, "crf": 16} for n in range(120, 182, 10)]).decode()
    job = (await world.submit("plain.mp4", ladder)).json()
    while world.relay.open_works == 0:
        await asyncio.sleep(0.01)
    answer = await world.client.post(f"/v1/transcodes/{job['id']}/cancel")
    assert answer.json()["status"] == "cancelled"
    async with asyncio.timeout(1):
        while world.relay.open_works:
            await asyncio.sleep(0.01)
    assert not (world.root / "video" / job["id"]).exists()
    again = await world.client.delete(f"/v1/transcodes/{job['id']}")
    assert again.json()["status"] == "cancelled"


async def test_a_deleted_job_leaves_no_files(world: VideoWorld) -> None:
    """Its record stays, so that its cost can be explained."""
    job = await world.ended((await world.submit()).json()["id"])
    shown = (await world.client.delete(f"/v1/transcodes/{job['id']}")).json()
    assert (shown["status"], shown["playback_url"], shown["files"]) == ("done", None, [])
    assert (await world.client.get(job["playback_url"])).status_code == 404


async def test_files_are_reached_by_their_secret_or_not_at_all(world: VideoWorld) -> None:
    """Nothing but the names that we gave leads to the disk."""
    job = await world.ended((await world.submit()).json()["id"])
    base, token = f"/v1/transcodes/{job['id']}", job["playback_url"].split("/hls/")[1].split("/")[0]
    assert (await world.client.get(f"{base}/hls/{token}/144p/00000.m4s")).status_code == 200
    assert (await world.client.get(f"{base}/files/master.m3u8")).status_code == 200
    for path in (
        f"{base}/hls/{'x' * 32}/master.m3u8", f"{base}/hls/work/00000.nut",
        f"{base}/hls/{token}/../work/00000.nut",
        f"{base}/hls/{token}/%2e%2e/source", f"{base}/hls/{token}/144p/.00000.m4s", f"{base}/hls/{token}/",
        f"{base}/files/../../groundswell.db", f"/v1/transcodes/%2e%2e/hls/{token}/master.m3u8",
    ):  # fmt: skip
        assert (await world.client.get(path)).status_code == 404, path


class TwoTenants:
    """Keys ``a`` and ``b`` of two tenants, and ``c`` without the scope."""

    def find_cached(self, token: str) -> Principal | None:
        scope = Scope.INFERENCE if token == "c" else Scope.VIDEO
        return Principal(token, token, frozenset({scope})) if token in ("a", "b", "c") else None

    async def find(self, token: str) -> Principal | None:
        return self.find_cached(token)


async def test_a_range_of_a_file_is_one_range_or_the_whole(world: VideoWorld) -> None:
    """Thousands of ranges in one request cost others their server; and every error has the one shape."""
    job = await world.ended((await world.submit()).json()["id"])
    whole = (await world.client.get(job["playback_url"])).content
    answers = []
    for asked in (
        "bytes=0-3", "bytes=2-", f"bytes={len(whole)}-", "bytes=" + "0-0," * 3000 + "0-0", "bytes=-3",
        "bytes=3-1", "bytes=x", "lines=1-2", "bytes=" + "9" * 40 + "-", "bytes=0-\xe9",
    ):  # fmt: skip
        answer = await world.client.get(job["playback_url"], headers={b"range": asked.encode("latin-1")})
        answers.append((answer.status_code, answer.content))
    assert answers[0] == (206, whole[:4])
    assert answers[1] == (206, whole[2:])
    assert answers[2][0] == 416
    assert msgspec.json.decode(answers[2][1])["error"]["code"] == "range_not_satisfiable"
    assert set(answers[3:]) == {(200, whole)}


async def test_a_tenant_sees_and_touches_only_its_own(tmp_path: Path) -> None:
    """Ids may leak; they open nothing."""
    world = VideoWorld(tmp_path, segment_s=1.5)
    world.keys = TwoTenants()
    await world.start()
    mine, theirs, none = ({"authorization": f"Bearer {key}"} for key in "abc")
    job = (await world.submit(authorization="Bearer a")).json()
    blob = (await world.client.post("/v1/blobs", content=b"x", headers=mine)).json()
    for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "/files/master.m3u8")):
        answer = await world.client.request(method, f"/v1/transcodes/{job['id']}{path}", headers=theirs)
        assert answer.status_code == 404
    used = await world.client.post("/v1/transcodes", json={"input": {"blob": blob["id"]}}, headers=theirs)
    assert used.status_code == 404
    assert (await world.client.get("/v1/transcodes", headers=theirs)).json()["data"] == []
    assert (await world.client.get("/v1/transcodes", headers=none)).status_code == 403
    assert (await world.client.get("/v1/transcodes")).status_code == 401
    await world.stop()


async def test_work_that_was_done_is_not_done_or_charged_again_after_a_crash(tmp_path: Path) -> None:
    """A killed gateway's successor goes on where the store says."""
    world = await VideoWorld(tmp_path, segment_s=1.5).start()
    ids = [(await world.submit()).json()["id"] for _ in range(2)]
    while not (done := await charges(world)):
        await asyncio.sleep(0.02)
    await world.crash()
    before = {row.work_id: row.created_ms for row in done}
    await world.stop()
    world = await VideoWorld(tmp_path, segment_s=1.5).start()
    jobs = [await world.ended(one) for one in ids]
    rows = await charges(world)
    assert [job["status"] for job in jobs] == ["done", "done"]
    assert {row.work_id: row.created_ms for row in rows}.items() >= before.items()
    assert sum(row.pixels for row in rows) == 2 * 180 * 256 * 144
    assert [job["cost_nano"] for job in jobs] == [sum(cost_nano_of(row) for row in rows) // 2] * 2
    await world.stop()


def cost_nano_of(row: Any) -> int:
    from groundswell.model.money import Price, Usage

    return cost_nano(Usage(pixels=row.pixels), Price(pixel_nano=row.price_pixel_nano))


async def test_a_segment_that_fails_everywhere_ends_its_job_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that no node can decode must not go round for ever."""
    from groundswell.media import package

    sync = package.sync_folder

    def damage(folder: Path) -> None:
        path = folder / "00001.nut"
        path.write_bytes(path.read_bytes()[:2000])
        sync(folder)

    monkeypatch.setattr(package, "sync_folder", damage)
    world = await VideoWorld(tmp_path, segment_s=1.5, attempts=2).start()
    job = await world.ended((await world.submit()).json()["id"])
    assert job["status"] == "failed"
    assert "segment 1" in job["error"]["message"]
    assert job["playback_url"] is None
    await world.stop()


async def test_an_accepted_job_waits_while_the_disk_is_full(
    world: VideoWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room comes back; a job that was accepted must not fail for the want of it, nor be charged twice."""
    kept, refusals = package.keep_video, iter(range(7))  # More than a segment's three attempts.

    def keep_when_there_is_room(*arguments: Any) -> Any:
        if next(refusals, None) is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return kept(*arguments)

    submit = world.relay.submit
    sent: list[str] = []

    def submitted(work: Work, exchange: Any) -> None:
        sent.append(work.id)
        submit(work, exchange)

    monkeypatch.setattr(world.relay, "submit", submitted)
    monkeypatch.setattr(package, "keep_video", keep_when_there_is_room)
    monkeypatch.setattr(transcodes, "FULL_PAUSE_S", 0.01)
    answer = await world.submit("ntsc.mp4", '["144p"]')
    job = await world.ended(answer.json()["id"])
    assert (job["status"], job["error"]) == ("done", None)
    assert {segment["attempts"] for segment in job["segments"]} == {1}
    assert len(sent) == len(set(sent)), (
        "a node would answer an id that it knows with its old end, and no bytes"
    )
    assert sum(map(cost_nano_of, await charges(world))) == job["cost_nano"]


async def test_an_upload_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """Also when it comes inside a form."""
    world = await VideoWorld(tmp_path, upload_bytes=1000).start()
    assert (await world.client.post("/v1/blobs", content=bytes(2000))).status_code == 413
    assert (await world.submit()).status_code == 413
    assert world.transcodes.blobs.used_bytes == 0
    await world.stop()


async def test_a_source_by_url_is_fetched_by_the_job(tmp_path: Path) -> None:
    """Checked before it is accepted, fetched after, and its own failures are the job's."""
    from groundswell.wire.fetch import Fetcher, FetchRules

    film = clip("plain.mp4").read_bytes()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
        body = film if path == b"/film.mp4" else b"#EXTM3U\nfile:///etc/passwd"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    world = VideoWorld(tmp_path, segment_s=1.5)
    world.fetcher = Fetcher(FetchRules(ports=frozenset({port}), allow=("127.0.0.1/32",)))
    await world.start()

    async def ask(url: str) -> httpx.Response:
        return await world.client.post("/v1/transcodes", json={"input": {"url": url}, "ladder": ["144p"]})

    good = await ask(f"http://127.0.0.1:{port}/film.mp4")
    bad = await ask(f"http://127.0.0.1:{port}/list.mp4")
    refused = await ask("http://169.254.169.254/latest/")
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "url_rejected")
    assert (await world.ended(good.json()["id"]))["status"] == "done"
    failed = await world.ended(bad.json()["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "media_rejected")
    await world.stop()
    server.close()
    await server.wait_closed()
