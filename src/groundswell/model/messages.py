"""What travels between a gateway and a node. Counts and ids only; payload bytes ride beside, never inside.

Every message of an attempt names (work id, attempt number); outputs carry an index besides. A receiver drops
what belongs to an attempt that it no longer holds, and what it has seen before.
"""

from __future__ import annotations

from enum import StrEnum

from groundswell.model.money import Price, Usage
from groundswell.model.value import value
from groundswell.model.work import Kind


class Fault(StrEnum):
    """Why an attempt did not finish, by whose fault it is."""

    LOST = "lost"  # the engine or node died or was cut off; the work itself is not to blame
    REJECTED = "rejected"  # the engine says that the request is wrong (4xx); no other node would take it
    BROKEN = "broken"  # the engine answered with an error of its own (5xx, malformed output)
    STALLED = "stalled"  # no output within the stall limit
    CANCELLED = "cancelled"  # we asked it to stop


class Refusal(StrEnum):
    """Why a node does not take an offer."""

    FULL = "full"
    DRAINING = "draining"
    NO_ENGINE = "no_engine"


@value
class Offer:
    """Gateway to node: run this attempt. ``emitted_tokens`` > 0 means: continue after that much output.

    The price is frozen here: a node is paid what it asked when it was chosen.
    """

    work_id: str
    attempt: int
    node_id: str
    engine_id: str
    kind: Kind
    model: str
    emitted_tokens: int = 0
    price: Price = Price()


@value
class Withdraw:
    """Gateway to node: stop this attempt and forget it. Idempotent."""

    work_id: str
    attempt: int


@value
class Accepted:
    """Node to gateway: the attempt has a slot and runs."""

    work_id: str
    attempt: int


@value
class Refused:
    """Node to gateway: the attempt was not started and never will be."""

    work_id: str
    attempt: int
    reason: Refusal


@value
class Output:
    """Node to gateway: one frame of output, ``index`` 0, 1, 2, ... within its attempt.

    ``tokens`` is how many tokens the frame adds (0 for a frame without content, such as the role).
    ``resumable`` turns false when what was sent so far cannot be continued elsewhere (a tool call began).
    """

    work_id: str
    attempt: int
    index: int
    tokens: int = 0
    resumable: bool = True


@value
class Ended:
    """Node to gateway: the attempt is over after ``frames`` outputs. ``fault`` is None when it finished."""

    work_id: str
    attempt: int
    frames: int
    usage: Usage = Usage()
    fault: Fault | None = None
    detail: str = ""


FromNode = Accepted | Refused | Output | Ended
ToNode = Offer | Withdraw
