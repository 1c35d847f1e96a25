"""Two links as one: nodes of this process by memory, the others by the network."""

from __future__ import annotations

from collections.abc import Callable

from groundswell.bus.gateway_end import GatewayEnd
from groundswell.bus.memory import MemoryGatewayLink
from groundswell.model.errors import GroundswellError
from groundswell.model.messages import FromNode, ToNode
from groundswell.model.node import NodeReport
from groundswell.ports import Payload


class Links:
    """See ``ports.GatewayLink``. A node of this process is never taken for one of the network."""

    def __init__(self, memory: MemoryGatewayLink, network: GatewayEnd) -> None:
        self._memory = memory
        self._network = network

    def send(self, node_id: str, message: ToNode, payload: Payload | None = None) -> None:
        self._of(node_id).send(node_id, message, payload)

    def pause(self, node_id: str, work_id: str, attempt: int) -> None:
        self._of(node_id).pause(node_id, work_id, attempt)

    def resume(self, node_id: str, work_id: str, attempt: int) -> None:
        self._of(node_id).resume(node_id, work_id, attempt)

    def listen(
        self,
        on_message: Callable[[FromNode, bytes, GroundswellError | None], None],
        on_report: Callable[[NodeReport], None],
        on_left: Callable[[str, int], None],
    ) -> None:
        def report(report: NodeReport) -> None:
            if not self._memory.has(report.node_id):
                on_report(report)

        def left(node_id: str, generation: int) -> None:
            if not self._memory.has(node_id):
                on_left(node_id, generation)

        self._memory.listen(on_message, on_report, on_left)
        self._network.listen(on_message, report, left)

    def _of(self, node_id: str) -> MemoryGatewayLink | GatewayEnd:
        return self._memory if self._memory.has(node_id) else self._network
