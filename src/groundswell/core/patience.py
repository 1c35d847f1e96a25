"""How long anything is waited for, in seconds. What has no prediction of its own has a fixed limit."""

from __future__ import annotations

from typing import Final

from groundswell.core.membership import Seat
from groundswell.core.routing import Ask, Router
from groundswell.model.work import Kind, Work

ACCEPT_S: Final = 2.0  # An offer without an answer for so long never arrived.
FIRST_MIN_S, FIRST_MAX_S = 4.0, 60.0  # First output: 4x the predicted TTFT + 2 s, within these.
GAP_MIN_S, GAP_MAX_S = 2.0, 4.0  # Between frames: 10x the stream's own median gap, within these.
WHOLE_MIN_S, WHOLE_MAX_S = 60.0, 900.0  # Not streamed: 4x the predicted completion + 30 s, within these.
# When a stream stalls and all others of its engine are silent this long, it is the engine.
HUNG_S: Final = 1.0
LOST_WAIT_S: Final = 30.0  # Lost work may wait this long again, whatever its deadline was.
RESUME_WAIT_MAX_S: Final = 120.0  # A broken stream waits at most this long while its model is only busy.


def first_limit_s(router: Router, seat: Seat, ask: Ask, work: Work) -> float:
    """How long an attempt may be silent: to its first content, or in all if it is not streamed."""
    if work.kind is Kind.TRANSCODE:
        ahead = ask.pixels + seat.engine.backlog
        expected_s = router.estimator.predict_transcode_s(seat.key, ahead)
    else:
        ttft_s, tpot_s, _ = router.predict(seat, ask.prompt_tokens)
        if work.streaming:
            return _clamp(4.0 * ttft_s + 2.0, FIRST_MIN_S, FIRST_MAX_S)
        expected_s = ttft_s + tpot_s * (work.output_tokens_max or seat.capability.context_tokens)
    return _clamp(4.0 * expected_s + 30.0, WHOLE_MIN_S, WHOLE_MAX_S)


def _clamp(value: float, low: float, high: float) -> float:
    return low if value < low else high if value > high else value
