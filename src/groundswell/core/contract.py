"""What the dispatcher is told and what it wants done: all that others need to know of it.

The driver hands in one event after another and performs the effects, in order. The relay does so with real
wires, the simulator with invented ones. Messages between a gateway and its nodes are in ``model.messages``;
those from a node are events as they are.
"""

from __future__ import annotations

from groundswell.model.messages import Accepted, Ended, Fault, Offer, Output, Refused, Withdraw
from groundswell.model.money import Price, Usage
from groundswell.model.node import NodeReport
from groundswell.model.value import value
from groundswell.model.work import Work, WorkState

# --- events: what happened ---


@value
class Arrived:
    """A work was accepted by the front door. ``draw`` is 64 bits of chance that the core expands."""

    work: Work
    draw: int


@value
class Cancelled:
    """The client went away, or asked for the work to stop."""

    work_id: str


@value
class Reported:
    """A node's heartbeat or hello arrived."""

    report: NodeReport


@value
class Left:
    """The link knows that this generation of a node is gone: a goodbye, or its connection broke."""

    node_id: str
    generation: int


@value
class Tick:
    """Nothing happened but time: the machine asked to be woken now."""


@value
class Paused:
    """The front door holds this work's output back because its client is slow, or lets it flow again; silence
    of a paused stream is not a stall."""

    work_id: str
    paused: bool


Event = Arrived | Cancelled | Reported | Left | Accepted | Refused | Output | Ended | Paused | Tick

# --- effects: what to do ---


@value
class Send:
    """Send a message to a node."""

    node_id: str
    message: Offer | Withdraw


@value
class Deliver:
    """Hand this frame's bytes to the client, now: it is the next one, of the one attempt that counts."""

    work_id: str
    attempt: int
    index: int


class Reason:
    """Stable codes for why a work ended other than done; docs/reference/errors.md lists them."""

    UNKNOWN_MODEL = "model_not_found"
    NO_NODE = "no_capable_node"
    QUEUE_FULL = "server_is_overloaded"
    DEADLINE = "deadline_exceeded"
    REJECTED = "rejected_by_engine"
    EXHAUSTED = "upstream_error"
    NOT_RESUMABLE = "stream_interrupted"
    POISON = "job_failed"
    CANCELLED = "cancelled"


@value
class Finish:
    """The work has ended. Sent exactly once for each work that arrived; ``usage`` is what is settled.

    Done with a ``fault``: all was said when the engine was lost, perhaps without its end.
    ``emitted_tokens`` is what the client was sent by attempts before the last one; ``continued`` counts
    attempts that went on in mid-stream, ``attempts`` all of them. Times are in seconds from arrival;
    ``ttft_s`` is None when no content went out.
    """

    work_id: str
    state: WorkState
    reason: str = ""
    fault: Fault | None = None
    node_id: str = ""
    engine_id: str = ""
    usage: Usage = Usage()
    price: Price = Price()
    attempts: int = 0
    continued: int = 0
    emitted_tokens: int = 0
    retry_after_s: float | None = None
    queue_wait_s: float = 0.0
    ttft_s: float | None = None
    duration_s: float = 0.0


Effect = Send | Deliver | Finish
