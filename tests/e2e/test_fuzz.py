"""The whole HTTP interface of a real gateway under requests that mean harm. `make fuzz` is the long run.

What counts: a 500, an error that is not in our shape, a connection that is dropped without an answer, an
exception in the log, a loop that stands still for more than 50 ms, memory or descriptors that grow, a secret
where none belongs.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import mutants
import psutil
import pytest
from gateway_process import GatewayProcess, gateway_process, one_emulated
from watched_gateway import LATE_MS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(7200)]

CONNECTIONS = 4
ANSWER_S = 20.0  # For a whole request; what is no request may be waited for by the server, and is left.
SILENCE_S = 0.1
STREAM_BYTES = 200_000  # An answer that is longer is left: some ask for millions of tokens.
HONEST = frozenset(
    {200, 201, 202, 204, 206, 400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 416, 422, 431, 502, 503, 504}
)
PERMANENT = frozenset({400, 401, 403, 404, 405, 409, 413, 414, 415, 422, 431})
PRIVATE = (
    b"Traceback",
    b'File "',
    b"/src/groundswell",
    b"site-packages",
    b"Exception",
    mutants.PROMPT.encode(),
)


@dataclass
class Answer:
    """One response: as much of it as was waited for."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    whole: bool = True


@dataclass
class Tally:
    """What happened."""

    statuses: Counter[int] = field(default_factory=Counter)
    sorts: Counter[str] = field(default_factory=Counter)
    left: int = 0
    wrong: list[tuple[int, str]] = field(default_factory=list)
    spans: list[tuple[float, float, int]] = field(default_factory=list)


class Attacker:
    """One connection that is opened again as often as the server closes it."""

    def __init__(self, gateway: GatewayProcess, seed: int, numbers: Iterator[int], tally: Tally) -> None:
        where = urlsplit(gateway.url)
        self._address = (where.hostname, where.port)
        self._key, self._seed, self._numbers, self._tally = gateway.key, seed, numbers, tally
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            self._close()

    async def _run(self) -> None:
        for number in self._numbers:
            mutant = mutants.mutant(self._seed, number, self._key)
            began_s = time.monotonic()
            wrong = await self._attack(mutant)
            self._tally.spans.append((began_s, time.monotonic(), number))
            self._tally.sorts[mutant.sort] += 1
            if wrong:
                self._tally.wrong.append((number, f"{mutant.sort}: {wrong}: {mutant.data[:300]!r}"))

    async def _attack(self, mutant: mutants.Mutant) -> str:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(*self._address, limit=1 << 20)
        assert self._reader is not None
        self._writer.write(mutant.data)
        try:
            async with asyncio.timeout(ANSWER_S if mutant.clean else SILENCE_S) as patience:
                while True:
                    answer = await self._answer(mutant.data.startswith(b"HEAD"))
                    if answer.status == 100:
                        continue
                    self._tally.statuses[answer.status] += 1
                    if wrong := wrong_with(answer, self._key.encode()):
                        return wrong
                    if not answer.whole or answer.headers.get("connection") == "close":
                        self._close()
                        return ""
                    if mutant.clean:
                        return ""
                    # What follows may be one more request, or a part of one.
                    patience.reschedule(asyncio.get_running_loop().time() + 0.02)
        except TimeoutError:
            self._close()
            self._tally.left += 1
            return "no answer in time" if mutant.clean else ""
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            self._close()
            return f"{type(error).__name__} instead of an answer" if mutant.clean else ""

    async def _answer(self, head_only: bool) -> Answer:
        reader = self._reader
        assert reader is not None
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        answer = Answer(int(head[0].split()[1]), headers)
        if head_only or answer.status in (100, 204, 304):
            return answer
        if headers.get("transfer-encoding") != "chunked":
            answer.body = await reader.readexactly(int(headers.get("content-length", "0")))
            return answer
        while size := int(await reader.readline(), 16):
            answer.body += await reader.readexactly(size)
            await reader.readexactly(2)
            if len(answer.body) > STREAM_BYTES:
                answer.whole = False
                return answer
        await reader.readexactly(2)
        return answer

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None


def wrong_with(answer: Answer, key: bytes) -> str:
    """What no answer may be, in words; empty for an honest one."""
    if answer.status not in HONEST:
        return f"status {answer.status} {answer.body[:200]!r}"
    if "x-request-id" not in answer.headers:
        return "no request id"
    if key in answer.body:
        return "the key comes back"
    if answer.status >= 400:
        if answer.headers.get("content-type") != "application/json":
            return f"an error of type {answer.headers.get('content-type')}"
        if any(word in answer.body for word in PRIVATE):
            return f"an error that says too much: {answer.body[:300]!r}"
        if answer.body:
            error = json.loads(answer.body)["error"]
            if set(error) != {"message", "type", "param", "code"} or not error["code"]:
                return f"an error of another shape: {answer.body[:200]!r}"
        if answer.status in PERMANENT and answer.headers.get("x-should-retry") != "false":
            return "a permanent error that invites another try"
        if answer.status in (429, 502, 503, 504) and not 1 <= int(answer.headers["retry-after"]) <= 120:
            return "an error of the moment without Retry-After"
    elif answer.whole and "event-stream" in answer.headers.get("content-type", ""):
        ended = answer.body.endswith(b"data: [DONE]\n\n") or b'data: {"error"' in answer.body
        return "" if ended else "a stream without an end"
    return ""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("fuzz")
    start = [str(Path(__file__).with_name("watched_gateway.py"))]
    env = {"WATCH_FILE": str(folder / "watch.json")}
    with gateway_process(
        folder, one_emulated(1000, "[limits]\nblobs_bytes = 100000000"), start=start, env=env
    ) as running:
        running.wait_for_model("m")
        running.process.send_signal(signal.SIGUSR1)  # From here on the loop is watched.
        yield running


async def attack(gateway: GatewayProcess, seed: int, numbers: Iterator[int]) -> Tally:
    tally = Tally()
    await asyncio.gather(*(Attacker(gateway, seed, numbers, tally).run() for _ in range(CONNECTIONS)))
    await asyncio.sleep(0.1)  # Until the last connections are closed.
    return tally


def test_nothing_that_is_sent_makes_the_gateway_fail(
    gateway: GatewayProcess, pytestconfig: pytest.Config
) -> None:
    """A 500 is a defect, an exception in the log another, and a loop that stands still harms all others."""
    count, seed = pytestconfig.getoption("--inputs"), pytestconfig.getoption("--seed")
    process = psutil.Process(gateway.process.pid)
    asyncio.run(
        attack(gateway, seed - 1, iter(range(min(count, 1000))))
    )  # Memory that is used once and kept.
    files, bytes_before = process.num_fds(), process.memory_info().rss
    began_s = time.monotonic()
    tally = asyncio.run(attack(gateway, seed, iter(range(count))))
    seconds = time.monotonic() - began_s
    with gateway.client() as client:
        metrics = client.get("/metrics").content
        answered = client.post("/v1/chat/completions", json=mutants.PLAIN)
    files_left, grown = process.num_fds() - files, process.memory_info().rss / bytes_before - 1
    gateway.stop()
    watch = json.loads((gateway.folder / "watch.json").read_text())
    log = (gateway.folder / "log.jsonl").read_bytes()
    errors = [line for line in log.splitlines() if b'"level": "error"' in line or b"Traceback" in line]
    print(f"\nseed {seed}: {count} inputs in {seconds:.0f} s, {tally.left} without an answer")
    print("sorts   ", dict(sorted(tally.sorts.items())))
    print("statuses", dict(sorted(tally.statuses.items())))
    print(f"wrong answers {len(tally.wrong)}, errors in the log {len(errors)}")
    print(f"loop: {watch['beats']} beats, worst {watch['worst']}, late {len(watch['late'])}")
    print(f"memory +{100 * grown:.1f} %, descriptors +{files_left}")
    for late in watch["late"][:20]:
        during = [n for begin, end, n in tally.spans if begin < late["at_s"] and late["at_s"] - 2 < end]
        print("  late", late, "during", during[-8:])
    assert answered.status_code == 200, answered.text
    assert tally.wrong[:5] == []
    assert errors[:3] == []
    assert [late for late in watch["late"] if late["cpu_ms"] > LATE_MS] == []
    assert files_left <= CONNECTIONS
    kept = [path.read_bytes() for path in gateway.folder.glob("data/groundswell.db*")] + [log, metrics]
    assert not any(secret.encode() in text for text in kept for secret in (gateway.key, mutants.PROMPT))
