"""The promise in one scene: a stock client streams, the engine that serves it is killed, the rest comes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import openai
import psutil
import pytest
from gateway_process import GatewayProcess, gateway_process

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SETTINGS = """
[[nodes]]
id = "a"
engines = [{kind = "builtin"}]
[[nodes]]
id = "b"
engines = [{kind = "builtin"}]
"""
QUESTION = [{"role": "user", "content": "Explain how Groundswell works in detail"}]
STALL_S = 5.0  # A kill is noticed at once; the rest of this is for a busy machine.


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway_process(tmp_path_factory.mktemp("kill"), SETTINGS) as running:
        running.wait_for_model("builtin", 2)
        yield running


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    """As its documentation shows it, but for base_url and api_key; it must not hide a failure by retrying."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as one:
        yield one


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.9, "seed": 11}], ids=str)
def test_the_engine_is_killed_in_mid_stream_and_the_client_sees_the_rest(
    gateway: GatewayProcess, client: openai.OpenAI, options: dict[str, float]
) -> None:
    """Nothing lost, nothing doubled: the same text as the undisturbed run, one id, one finish, one count."""
    gateway.wait_for_model("builtin", 2)
    whole = client.chat.completions.create(model="builtin", messages=QUESTION, max_tokens=150, **options)
    reference = whole.choices[0].message.content or ""
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 30, "long enough to be killed in the middle"

    before, continued_before = work_done(gateway), continued(gateway)
    stream = client.chat.completions.create(
        model="builtin", messages=QUESTION, max_tokens=150, stream=True,
        stream_options={"include_usage": True}, **options,
    )  # fmt: skip
    text, ids, finishes, usage, killed, longest_s = "", set(), [], None, 0, 0.0
    last_s = time.monotonic()
    for chunk in stream:
        ids.add(chunk.id)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finishes += [choice.finish_reason] if choice.finish_reason else []
            if not choice.delta.content:
                continue
            now_s = time.monotonic()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
            text += choice.delta.content
            if not killed and len(text) > len(reference) // 5:
                killed = kill_the_serving(gateway, before)
                assert text != reference, "it was over before it was killed"
    assert killed
    assert not psutil.pid_exists(killed) or psutil.Process(killed).status() == psutil.STATUS_ZOMBIE
    assert text == reference
    assert len(ids) == 1
    assert finishes == [whole.choices[0].finish_reason]
    assert usage == whole.usage
    assert longest_s < STALL_S
    assert continued(gateway) == continued_before + 1, (
        "the stream went on elsewhere; it was not all in the client's buffer"
    )


def work_done(gateway: GatewayProcess) -> dict[int, float]:
    """Processor seconds of each engine so far."""
    return {one.pid: sum(one.cpu_times()[:2]) for one in gateway.engines("builtin")}


def kill_the_serving(gateway: GatewayProcess, before: dict[int, float]) -> int:
    """SIGKILL to the engine that has computed since ``before``; its pid."""
    after = work_done(gateway)
    pid = max(after, key=lambda one: after[one] - before.get(one, after[one]))
    psutil.Process(pid).send_signal(signal.SIGKILL)
    return pid


def continued(gateway: GatewayProcess) -> float:
    """How often a stream was continued so far, as the metrics count it."""
    with gateway.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("groundswell_continuations_total{")
    )
