"""What a client sees when something went wrong: one JSON shape, one set of headers, one status per cause.

The body is always ``{"error": {"message", "type", "param", "code"}}`` with all four keys, as the OpenAI
clients expect it. 502, 503 and 504 may be tried again and say when, in both headers that the clients
read, spread per request so that a crowd that was refused together does not come back together. Everything
else says ``x-should-retry: false``, because those clients would otherwise repeat a 409 or a 500.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from groundswell.core.contract import Finish, Reason
from groundswell.model.errors import (
    BadRequest,
    DeadlineError,
    GroundswellError,
    InternalError,
    NotFound,
    Overloaded,
    Unprocessable,
    UpstreamError,
)

RETRY_AFTER_MIN_S = 1.0
RETRY_AFTER_MAX_S = 120.0  # The official clients obey up to 120 s and give up above it.
# Where the dispatcher predicts no time; its own predictions are spread by the request's draw already.
RETRY_AFTER_S, RETRY_AFTER_SPREAD_S = 1.5, 1.0

Headers = list[tuple[bytes, bytes]]


def body(error: GroundswellError) -> bytes:
    """The JSON body of an error, all four keys present."""
    return msgspec.json.encode(
        {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}
    )


def event(error: GroundswellError) -> bytes:
    """The one SSE event that ends a stream that has already begun. No ``[DONE]`` follows it."""
    return b"data: " + body(error) + b"\n\n"


def headers(error: GroundswellError) -> Headers:
    """The headers that belong to an error, besides its request id and length."""
    lines: Headers = [(b"content-type", b"application/json")]
    if error.status == 401:
        lines.append((b"www-authenticate", b"Bearer"))
    if not error.retry:
        lines.append((b"x-should-retry", b"false"))
        return lines
    wait_s = error.retry_after_s
    if wait_s is None:
        wait_s = RETRY_AFTER_S + RETRY_AFTER_SPREAD_S * secrets.randbelow(1001) / 1000
    wait_ms = int(min(max(wait_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S) * 1000)
    lines.append((b"retry-after", b"%d" % -(-wait_ms // 1000)))
    lines.append((b"retry-after-ms", b"%d" % wait_ms))
    return lines


def from_finish(finish: Finish, model: str, error: GroundswellError | None) -> GroundswellError:
    """The client's error for a work that did not end as done. ``error`` is the last attempt's own, if any."""
    make = _BY_REASON.get(finish.reason)
    if make is None:
        if error is not None and error.code == finish.reason:
            return error  # The gateway itself gave up on this request, and says why.
        return InternalError(
            "The request ended for a reason that has no name. This is a defect of the server."
        )
    return make(finish, model, error)


def _unknown_model(_finish: Finish, model: str, _error: GroundswellError | None) -> GroundswellError:
    shown = model if len(model) <= 100 else model[:100] + "…"
    return NotFound(
        f"No model {shown!r} does this here. GET /v1/models lists the models, and what each does.",
        code=Reason.UNKNOWN_MODEL,
        param="model",
    )


def _no_node(finish: Finish, _model: str, _error: GroundswellError | None) -> GroundswellError:
    return Overloaded(
        "No node that can do this is available at the moment.",
        code=Reason.NO_NODE,
        retry_after_s=finish.retry_after_s,
    )


def _queue_full(finish: Finish, _model: str, _error: GroundswellError | None) -> GroundswellError:
    return Overloaded(
        "All nodes are busy and the queue is full. Try again after the time in Retry-After.",
        code=Reason.QUEUE_FULL,
        retry_after_s=finish.retry_after_s,
    )


def _deadline(finish: Finish, _model: str, _error: GroundswellError | None) -> GroundswellError:
    return DeadlineError(
        "The request was accepted, but no node could start it in time.",
        code=Reason.DEADLINE,
        retry_after_s=finish.retry_after_s,
    )


def _rejected(_finish: Finish, _model: str, error: GroundswellError | None) -> GroundswellError:
    return error or BadRequest(
        "The engine that serves this model rejected the request.", code=Reason.REJECTED
    )


def _exhausted(finish: Finish, _model: str, error: GroundswellError | None) -> GroundswellError:
    if error is not None and error.retry:
        return error
    return UpstreamError(
        "The engine failed and no other node could finish the request.",
        code=Reason.EXHAUSTED,
        retry_after_s=finish.retry_after_s,
    )


def _not_resumable(finish: Finish, _model: str, error: GroundswellError | None) -> GroundswellError:
    why = f" ({error.message})" if error is not None and not isinstance(error, InternalError) else ""
    return UpstreamError(
        f"The stream was interrupted and cannot be continued from where it stopped{why}.",
        code=Reason.NOT_RESUMABLE,
        retry_after_s=finish.retry_after_s,
    )


def _poison(_finish: Finish, _model: str, _error: GroundswellError | None) -> GroundswellError:
    return Unprocessable(
        "Several nodes failed while they worked on this request; it will not be tried again.",
        code=Reason.POISON,
    )


def _cancelled(_finish: Finish, _model: str, _error: GroundswellError | None) -> GroundswellError:
    return Overloaded("The request was cancelled before it finished.", code=Reason.CANCELLED)


def _shutting_down(_finish: Finish, _model: str, _error: GroundswellError | None) -> GroundswellError:
    return Overloaded("This server is shutting down.", code="shutting_down")


_BY_REASON: dict[str, Callable[[Finish, str, GroundswellError | None], GroundswellError]] = {
    Reason.UNKNOWN_MODEL: _unknown_model,
    Reason.NO_NODE: _no_node,
    Reason.QUEUE_FULL: _queue_full,
    Reason.DEADLINE: _deadline,
    Reason.REJECTED: _rejected,
    Reason.EXHAUSTED: _exhausted,
    Reason.NOT_RESUMABLE: _not_resumable,
    Reason.POISON: _poison,
    Reason.CANCELLED: _cancelled,
    "shutting_down": _shutting_down,
}
