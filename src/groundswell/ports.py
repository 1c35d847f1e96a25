"""What an edge must offer. Each port has one contract suite in tests/contract, run on every adapter.

All calls happen on one event loop; callbacks must not block. Bytes pass through here and never through the
core: an adapter reports counts to the brain and hands the bytes to whoever the brain names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from groundswell.model.errors import GroundswellError
from groundswell.model.messages import Ended, Fault, FromNode, Offer, Output, ToNode
from groundswell.model.money import Usage
from groundswell.model.node import Capability, NodeReport
from groundswell.model.work import Kind


@dataclass(frozen=True, slots=True)
class Emitted:
    """What the client was already sent by earlier attempts of a stream: continue after it."""

    text: str
    tokens: int


@dataclass(slots=True)
class Payload:
    """What an engine needs to run one attempt, in the gateway's own terms.

    ``body`` is the validated request (OpenAI field names) for text kinds, and the segment's task for
    transcodes; adapters take from it what their engine is allowed to see. ``data`` is binary input (a NUT
    segment). ``emitted`` is set when the attempt continues a stream.
    """

    kind: Kind
    body: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""
    emitted: Emitted | None = None


class Sink(Protocol):
    """Receives what one attempt on an engine produces, in order; after ``ended`` nothing more comes."""

    def output(self, data: bytes, tokens: int, resumable: bool = True) -> None:
        """Some output. Text streams: one or more *complete* SSE events as they came from the engine, with the
        number of content tokens in them. Otherwise: the next bytes of the answer."""

    def ended(self, usage: Usage, fault: Fault | None = None, error: GroundswellError | None = None) -> None:
        """The attempt is over. ``error`` says more about a fault, in words fit for a client."""


class Running(Protocol):
    """One attempt in progress on an engine."""

    def cancel(self) -> None:
        """Stop at once and free the engine; the sink hears nothing more. Idempotent."""

    def pause(self) -> None:
        """Stop reading from the engine: the client is slow."""

    def resume(self) -> None:
        """Read on."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a probe found."""

    slots: int
    capabilities: tuple[Capability, ...]
    flavour: str = ""


class Engine(Protocol):
    """One engine, local child process or URL, spoken to over HTTP."""

    engine_id: str

    async def probe(self) -> EngineInfo:
        """Ask the engine what it is and what it can do.

        Raises ``UpstreamError`` when it does not answer or is not ready."""

    def start(self, capability: Capability, payload: Payload, sink: Sink) -> Running:
        """Begin one attempt. Never raises for what the engine does; that arrives at the sink."""

    async def close(self) -> None: ...


class GatewayLink(Protocol):
    """The gateway's end of the link to all nodes."""

    def send(self, node_id: str, message: ToNode, payload: Payload | None = None) -> None:
        """Fire and forget; an ``Offer`` brings its payload."""

    def pause(self, node_id: str, work_id: str, attempt: int) -> None:
        """Ask the node to hold further output of this attempt back."""

    def resume(self, node_id: str, work_id: str, attempt: int) -> None: ...

    def listen(
        self,
        on_message: Callable[[FromNode, bytes, GroundswellError | None], None],
        on_report: Callable[[NodeReport], None],
        on_left: Callable[[str, int], None],
    ) -> None:
        """Where messages go; an ``Output`` brings its bytes, an ``Ended`` with a fault brings its error."""


class NodeLink(Protocol):
    """A node's end of the link."""

    def send(self, message: FromNode, data: bytes = b"", error: GroundswellError | None = None) -> None: ...

    def report(self, report: NodeReport) -> None: ...

    def leave(self) -> None:
        """Say goodbye: the node ends in good order."""

    def listen(
        self,
        on_message: Callable[[ToNode, Payload | None], None],
        on_flow: Callable[[str, int, bool], None],
    ) -> None:
        """Where messages go; ``on_flow(work_id, attempt, paused)`` carries back-pressure."""


class Exchange(Protocol):
    """The front door's half of one work: it holds the bytes that the brain never sees."""

    def payload(self, offer: Offer) -> Payload:
        """Build the payload of an attempt, called once for each offer. ``offer.emitted_tokens`` > 0 asks for
        one that continues."""

    def deliver(self, output: Output, data: bytes) -> None:
        """The next bytes of the one attempt that counts."""

    def finish(self, finish: Any, error: GroundswellError | None) -> None:
        """The end (a ``core.contract.Finish``), once. ``error`` is the last attempt's, if any.

        Should it raise on a work that is done, it is called again with an end as failed."""


__all__ = [
    "Emitted", "Ended", "Engine", "EngineInfo", "Exchange", "GatewayLink", "NodeLink", "Payload",
    "Running", "Sink",
]  # fmt: skip
