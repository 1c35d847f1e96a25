"""Which subject carries what, and who may use it.

A node listens to ``job.NODE.*`` and speaks on ``node.NODE.*``; the last part is a gateway's id, or ``all``.
The node's id is part of everything that it may use, so that the server itself sees to it that no node reads
another's prompts or speaks in its name. Only allow lists: rules that deny have been got around.
"""

from __future__ import annotations

from typing import Final

ALL: Final = "all"  # Instead of a gateway's id: for every gateway.


def token(name: str) -> str:
    """A node's id as one part of a subject. Ids may hold dots, which would be several parts."""
    return name.replace(".", "~")


def name(part: str) -> str:
    """The id that ``token`` was made of."""
    return part.replace("~", ".")


def to_node(node_id: str, gateway_id: str) -> str:
    return f"job.{token(node_id)}.{gateway_id}"


def from_node(node_id: str, gateway_id: str) -> str:
    return f"node.{token(node_id)}.{gateway_id}"


def parts(subject: str) -> tuple[str, str]:
    """The node's and the gateway's id of a subject that came in."""
    _, node, gateway_id = subject.split(".", 2)
    return name(node), gateway_id


def of_node(node_id: str) -> tuple[str, ...]:
    """What a node subscribes to."""
    return (to_node(node_id, "*"),)


def of_gateway(gateway_id: str) -> tuple[str, ...]:
    """What a gateway subscribes to."""
    return (f"node.*.{ALL}", f"node.*.{gateway_id}")


def node_permissions(node_id: str) -> dict[str, dict[str, list[str]]]:
    """All that a node may do, in the words of the server's configuration and of its user tokens."""
    return {
        "publish": {"allow": [from_node(node_id, "*")]},
        "subscribe": {"allow": [to_node(node_id, "*")]},
    }


def gateway_permissions() -> dict[str, dict[str, list[str]]]:
    """All that gateways may do; they trust each other."""
    return {"publish": {"allow": ["job.*.*"]}, "subscribe": {"allow": ["node.*.*"]}}
