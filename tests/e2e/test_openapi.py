"""schemathesis over our own OpenAPI description, against a real gateway: what is described is what happens.

It makes requests that fit the description and requests that do not, and looks at every answer: its status
must be described, its body and headers must fit, and a key must be asked for where one is needed. A 5xx is
honest only where an engine or its capacity is missing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from gateway_process import GatewayProcess, gateway_process, one_emulated
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation import GenerationMode

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

HONEST_5XX = (502, 503, 504)
NAMES = (
    "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "ignored_auth", "unsupported_method",
)  # fmt: skip
load_all_checks()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway_process(tmp_path_factory.mktemp("openapi"), one_emulated(1000)) as running:
        running.wait_for_model("m")
        yield running


def shorten(body: dict[str, Any]) -> None:
    """Let the text end by itself: as much as the context holds (131,072 tokens) takes half a minute."""
    body.pop("ignore_eos", None)
    if isinstance(body.get("min_tokens"), int):
        body["min_tokens"] = min(int(body["min_tokens"]), 100)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_one_that_is_described(
    gateway: GatewayProcess, pytestconfig: pytest.Config, mode: GenerationMode
) -> None:
    """Whoever builds on the description meets nothing else, whether the request was sound or not."""
    schema = schemathesis.openapi.from_url(f"{gateway.url}/v1/openapi.json")
    examples = max(5, pytestconfig.getoption("--inputs") // 400)
    checks = [CHECKS.get_one(name) for name in NAMES]
    seen: Counter[int] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        nothing_to_get_wrong = not any((operation.body, operation.query, operation.path_parameters))
        if mode is GenerationMode.NEGATIVE and nothing_to_get_wrong:
            continue

        @with_seed(pytestconfig.getoption("--seed"))
        @settings(
            max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = "m"  # Any other is not found, and its answer says little.
                shorten(case.body)
            response = case.call(headers=gateway.headers, timeout=30)
            seen[response.status_code] += 1
            assert response.status_code < 500 or response.status_code in HONEST_5XX, response.text
            case.validate_response(response, checks=checks, headers=gateway.headers)

        ask()
    print(f"\n{mode.value}: {sum(seen.values())} requests, {dict(sorted(seen.items()))}")
    log = (gateway.folder / "log.jsonl").read_text()
    assert '"level": "error"' not in log, os.linesep.join(log.splitlines()[-3:])
