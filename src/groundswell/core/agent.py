"""The agent: a node's own brain. It gives out slots, keeps its engines alive and says what it has.

Theory of operation: TO BE WRITTEN WITH THE MACHINE.
"""

from __future__ import annotations

from dataclasses import dataclass

from groundswell.model.messages import Accepted, Ended, Offer, Refused, Withdraw
from groundswell.model.node import Capability, NodeReport

# --- events: besides these, Offer and Withdraw from a gateway and Ended from an engine (an adapter) ---


@dataclass(frozen=True, slots=True)
class EngineUp:
    """A probe of the engine succeeded: it is ready and can do this."""

    engine_id: str
    slots: int
    capabilities: tuple[Capability, ...]


@dataclass(frozen=True, slots=True)
class EngineDown:
    """The engine's process ended, or its health probes failed. ``hung``: it must be killed first."""

    engine_id: str
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new; say when empty."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing happened but time."""


Event = Offer | Withdraw | Ended | EngineUp | EngineDown | Drain | Tick

# --- effects: what to do ---


@dataclass(frozen=True, slots=True)
class Reply:
    """Tell the gateway."""

    message: Accepted | Refused | Ended


@dataclass(frozen=True, slots=True)
class Begin:
    """Start this attempt on its engine."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop an attempt that runs; no frame of it may be sent after this."""

    work_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the engine's process (again). ``kill``: end what is left of the old one first."""

    engine_id: str
    generation: int
    kill: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Send this heartbeat."""

    report: NodeReport


@dataclass(frozen=True, slots=True)
class Drained:
    """Draining, and the last attempt has ended."""


Effect = Reply | Begin | Stop | Launch | Report | Drained
