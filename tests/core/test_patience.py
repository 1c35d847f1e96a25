"""How long an attempt may be silent, from what is predicted of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fleet import MODEL, chat, report

from groundswell.core.estimate import PIXELS_PER_S, Prediction
from groundswell.core.membership import Members, Seat
from groundswell.core.patience import first_limit_s
from groundswell.core.routing import Ask, Router, need_of
from groundswell.core.timers import Timers
from groundswell.model.work import Kind, Work


class Oracle(Router):
    """Everything takes what the test says: 5 s to the first token, a tenth for each further one."""

    def __init__(self, ttft_s: float = 5.0) -> None:
        super().__init__()
        self.ttft_s = ttft_s
        self.asked: tuple[int, int] | None = None
        self.estimator.predict = lambda *_: Prediction(ttft_s, 0.1, 10.0)  # type: ignore[method-assign]


def seat(**changes: Any) -> Seat:
    change = Members(Timers()).report(0.0, report("a", capabilities=[replace(MODEL, **changes)]))
    assert change is not None
    return change.added[0]


def limit_s(router: Router, work: Work, on: Seat | None = None, pixels: int = 0) -> float:
    ask = Ask(need_of(work), 100, 100, pixels, (), 1)
    return first_limit_s(router, on or seat(), ask, work)


@pytest.mark.parametrize(("ttft_s", "limit"), [(0.1, 4.0), (5.0, 22.0), (10.0, 42.0), (100.0, 60.0)])
def test_the_first_token_may_take_four_times_its_prediction_and_two_seconds(
    ttft_s: float, limit: float
) -> None:
    """From four seconds to a minute: a prediction may be wrong, and a client does not wait for ever."""
    assert limit_s(Oracle(ttft_s), chat()) == limit


@pytest.mark.parametrize(
    ("tokens", "limit"), [(0, 4 * (5 + 0.1 * 1000) + 30), (10, 60.0), (300, 4 * 35 + 30), (9000, 900.0)]
)
def test_an_answer_that_is_not_streamed_may_take_four_times_all_of_it(tokens: int, limit: float) -> None:
    """Its budget, or as much as the model's context holds; from a minute to a quarter of an hour."""
    work = chat(streaming=False, output_tokens_max=tokens)
    assert limit_s(Oracle(), work, seat(context_tokens=1000)) == pytest.approx(limit)


def test_a_transcode_may_take_four_times_its_pixels_and_those_before_it() -> None:
    """It waits for the backlog of its engine, which is pixels too."""
    work = replace(chat(streaming=False), kind=Kind.TRANSCODE)
    on = seat(kinds=frozenset({Kind.TRANSCODE}))
    on.engine.backlog = int(10 * PIXELS_PER_S)
    router = Router()
    assert limit_s(router, work, on, int(20 * PIXELS_PER_S)) == pytest.approx(4 * 30 + 30)
    for _ in range(100):
        router.estimator.observe_transcode(on.key, int(PIXELS_PER_S), 0.5)
    assert limit_s(router, work, on, int(20 * PIXELS_PER_S)) == pytest.approx(4 * 15 + 30, rel=0.01)
