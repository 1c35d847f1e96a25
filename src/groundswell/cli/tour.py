"""The tour: the main job, done before your eyes. A real chat answer, then a real video over all nodes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from groundswell.cli.profile import Profile
from groundswell.cli.screen import out, paste, piece, say
from groundswell.model.errors import UpstreamError
from groundswell.model.money import cost_nano, dollars

if TYPE_CHECKING:
    import httpx

    from groundswell.wiring import Service

QUESTION = "What is Groundswell?"
CLIP_S = 12
POLL_S = 0.25


def banner(service: Service, profile: Profile) -> None:
    """Where it listens and how to use it."""
    say(f"Groundswell is ready after {service.started_in_s:.1f} s: {service.base_url}/v1", style="bold")
    if service.is_open:
        say(
            "It listens beyond this machine: whoever reaches the port and has a key can use it, and traffic "
            "is not encrypted. Put a TLS proxy before it.",
            style="bold red",
        )


async def give_tour(service: Service, profile: Profile) -> None:
    """Chat, transcode, and what to paste. Raises ``UpstreamError`` when a part of it fails."""
    import httpx  # Not with the others: it is not needed to be ready.

    headers = {"authorization": f"Bearer {profile.api_key}"}
    async with httpx.AsyncClient(
        base_url=service.base_url, headers=headers, timeout=600, trust_env=False
    ) as client:
        await _chat(service, client)
        playback_url = await _video(service, client)
    _examples(profile, playback_url)


async def _chat(service: Service, client: httpx.AsyncClient) -> None:
    say(f"\nA chat answer from the built-in demonstration model\n> {QUESTION}", style="bold")
    body = {
        "model": "builtin",
        "stream": True,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        await _check(response)
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                for choice in event.get("choices", ()):
                    piece(choice["delta"].get("content") or "")
    say()
    finish = service.finished.get(response.headers["x-request-id"])
    if finish is not None:
        ttft = "" if finish.ttft_s is None else f", first after {finish.ttft_s * 1000:.0f} ms"
        cost = dollars(cost_nano(finish.usage, finish.price))
        say(f"  ran on {finish.node_id}: {finish.usage.output_tokens} tokens{ttft}, cost {cost}", style="dim")


async def _video(service: Service, client: httpx.AsyncClient) -> str:
    """Make a clip, transcode it; the URL to play it."""
    from groundswell.engines.transcode import ffmpeg_path

    say(
        f"\nA video: {CLIP_S} s of 1080p with sound, made here, into an HLS ladder over the nodes",
        style="bold",
    )
    clip = service.config.folder / "tour.mp4"
    columns = (TextColumn("  {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("making the clip", total=None)
        if not clip.exists():
            await _make_clip(ffmpeg_path(service.config.video.ffmpeg), clip)
        progress.update(task, description="uploading")
        started_s = time.monotonic()
        blob = await _post(client, "/v1/blobs", content=clip.read_bytes())
        job = await _post(client, "/v1/transcodes", json={"input": {"blob": blob["id"]}})
        progress.update(task, total=1.0, completed=0.0)
        while job["status"] in ("queued", "running"):
            await asyncio.sleep(POLL_S)
            response = await client.get(f"/v1/transcodes/{job['id']}")
            await _check(response)
            job = response.json()
            progress.update(task, completed=job["progress"], description=f"transcoding ({job['status']})")
    if job["status"] != "done":
        raise UpstreamError(f"The transcode {job['status']}: {(job.get('error') or {}).get('message', '?')}")
    took_s = time.monotonic() - started_s
    _report(job, took_s)
    return str(job["playback_url"])


def _report(job: dict[str, Any], took_s: float) -> None:
    spread = Counter(segment["node"] for segment in job["segments"])
    where = ", ".join(f"{count} on {node}" for node, count in sorted(spread.items()))
    renditions = " ".join(rung["name"] for rung in job["ladder"])
    say(f"  {len(job['segments'])} segments: {where}; renditions {renditions}", style="dim")
    say(f"  took {took_s:.1f} s for {CLIP_S} s of video, cost {dollars(job['cost_nano'])}", style="dim")


def _examples(profile: Profile, playback_url: str) -> None:
    say("\nUse it", style="bold")
    paste(
        f"""\
  base URL   {profile.base_url}/v1
  API key    {profile.api_key}
  the video  {playback_url}

  curl {profile.base_url}/v1/chat/completions -H "Authorization: Bearer {profile.api_key}" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "builtin", "messages": [{{"role": "user", "content": "What is a gateway?"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{profile.base_url}/v1", api_key="{profile.api_key}")
  for chunk in client.chat.completions.create(
      model="builtin", stream=True, messages=[{{"role": "user", "content": "What is a node?"}}]):
      print(chunk.choices[0].delta.content or "", end="") if chunk.choices else None

  groundswell chat "What is a segment?"      groundswell transcode FILE      groundswell status"""
    )


async def _make_clip(ffmpeg: str, target: Path) -> None:
    """A moving test picture with a tone, key frames each two seconds."""
    partial = target.with_suffix(".partial.mp4")
    process = await asyncio.create_subprocess_exec(
        ffmpeg, "-nostdin", "-loglevel", "error", "-y",
        "-f", "lavfi", "-i", f"testsrc2=size=1920x1080:rate=30:duration={CLIP_S}",
        "-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=48000:duration={CLIP_S}",
        "-c:v", "libx264", "-preset", "ultrafast", "-g", "60", "-pix_fmt", "yuv420p",
        "-c:a", "aac", "-b:a", "128k", str(partial),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise UpstreamError(f"ffmpeg could not make the clip: {errors.decode(errors='replace')[-300:]}")
    partial.replace(target)


async def _post(client: httpx.AsyncClient, path: str, **options: Any) -> dict[str, Any]:
    response = await client.post(path, **options)
    await _check(response)
    answer: dict[str, Any] = response.json()
    return answer


async def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    await response.aread()
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {response.status_code}"
    raise UpstreamError(f"The tour stopped: {message}")
