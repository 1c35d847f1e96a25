"""The link in one process: gateway and nodes call each other directly.

It is the default of ``up`` and carries every engine that is given by URL, so it is the fast path: a call per
message, no copy, no queue. Order is kept in each direction. A message to a node that is not there is lost,
as on any network; the brains are built for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from groundswell.bus.guarded import guarded
from groundswell.model.errors import GroundswellError
from groundswell.model.messages import FromNode, ToNode
from groundswell.model.node import NodeReport
from groundswell.ports import Payload

_log = logging.getLogger(__name__)


class MemoryLink:
    """Both ends of the link. ``gateway`` is the one end, ``node(node_id)`` makes another's.

    A second ``node`` with the same id takes the place of the first, as a restarted node does.
    """

    def __init__(self) -> None:
        self.gateway = MemoryGatewayLink()

    def node(self, node_id: str) -> MemoryNodeLink:
        """The end of this node; it is reachable once it listens."""
        return MemoryNodeLink(node_id, self.gateway)


class MemoryGatewayLink:
    """The gateway's end; see ``ports.GatewayLink``."""

    def __init__(self) -> None:
        self._nodes: dict[str, MemoryNodeLink] = {}
        self._on_message: Callable[[FromNode, bytes, GroundswellError | None], None] | None = None
        self._on_report: Callable[[NodeReport], None] | None = None
        self._on_left: Callable[[str, int], None] | None = None

    def send(self, node_id: str, message: ToNode, payload: Payload | None = None) -> None:
        node = self._nodes.get(node_id)
        if node is not None:
            node.receive(message, payload)

    def pause(self, node_id: str, work_id: str, attempt: int) -> None:
        self._flow(node_id, work_id, attempt, True)

    def resume(self, node_id: str, work_id: str, attempt: int) -> None:
        self._flow(node_id, work_id, attempt, False)

    def listen(
        self,
        on_message: Callable[[FromNode, bytes, GroundswellError | None], None],
        on_report: Callable[[NodeReport], None],
        on_left: Callable[[str, int], None],
    ) -> None:
        self._on_message, self._on_report, self._on_left = on_message, on_report, on_left

    def attach(self, node: MemoryNodeLink) -> None:
        """The node listens from now on, in place of an older one with its id."""
        self._nodes[node.node_id] = node

    def detach(self, node: MemoryNodeLink, generation: int) -> None:
        """The node said goodbye."""
        if self._nodes.get(node.node_id) is node:
            del self._nodes[node.node_id]
        if self._on_left is not None:
            guarded(self._on_left, node.node_id, generation)

    def holds(self, node: MemoryNodeLink) -> bool:
        """Whether this is the end that the node id stands for now."""
        return self._nodes.get(node.node_id) is node

    def has(self, node_id: str) -> bool:
        """Whether a node with this id is in this process."""
        return node_id in self._nodes

    def receive(
        self, node: MemoryNodeLink, message: FromNode, data: bytes, error: GroundswellError | None
    ) -> None:
        listener = self._on_message
        if listener is None or self._nodes.get(node.node_id) is not node:
            return
        try:  # As ``guarded`` does; this is the way of every token.
            listener(message, data, error)
        except Exception:
            _log.exception("a listener of the link failed")

    def receive_report(self, report: NodeReport) -> None:
        if self._on_report is not None:
            guarded(self._on_report, report)

    def _flow(self, node_id: str, work_id: str, attempt: int, paused: bool) -> None:
        node = self._nodes.get(node_id)
        if node is not None:
            node.receive_flow(work_id, attempt, paused)


class MemoryNodeLink:
    """A node's end; see ``ports.NodeLink``. After ``leave`` it carries nothing more."""

    def __init__(self, node_id: str, gateway: MemoryGatewayLink) -> None:
        self.node_id = node_id
        self._gateway = gateway
        self._generation = 0
        self._on_message: Callable[[ToNode, Payload | None], None] | None = None
        self._on_flow: Callable[[str, int, bool], None] | None = None

    def send(self, message: FromNode, data: bytes = b"", error: GroundswellError | None = None) -> None:
        self._gateway.receive(self, message, data, error)

    def report(self, report: NodeReport) -> None:
        self._generation = report.generation
        if self._gateway.holds(self):
            self._gateway.receive_report(report)

    def leave(self) -> None:
        if self._gateway.holds(self):
            self._gateway.detach(self, self._generation)

    def listen(
        self,
        on_message: Callable[[ToNode, Payload | None], None],
        on_flow: Callable[[str, int, bool], None],
    ) -> None:
        self._on_message, self._on_flow = on_message, on_flow
        self._gateway.attach(self)

    def receive(self, message: ToNode, payload: Payload | None) -> None:
        if self._on_message is not None:
            guarded(self._on_message, message, payload)

    def receive_flow(self, work_id: str, attempt: int, paused: bool) -> None:
        if self._on_flow is not None:
            guarded(self._on_flow, work_id, attempt, paused)
