"""One short line for each event and effect: what the log shows and the digest hashes.

Written by hand and not by ``repr``, for speed, and because a set's order differs from process to process.
"""

from __future__ import annotations

from groundswell.core import contract
from groundswell.model.messages import Accepted, Ended, Offer, Output, Refused, Withdraw
from groundswell.model.node import NodeReport


def describe(thing: contract.Event | contract.Effect) -> str:
    """The event or effect, for a person; different for different ones wherever that matters to a run."""
    match thing:
        case Output(work_id, attempt, index, tokens, resumable):
            return f"output {work_id}#{attempt} [{index}] {tokens}{'' if resumable else ' not resumable'}"
        case contract.Deliver(work_id, attempt, index):
            return f"-> deliver {work_id}#{attempt} [{index}]"
        case contract.Reported(report):
            return f"report {_report(report)}"
        case contract.Send(node_id, Offer() as offer):
            after = f" after {offer.emitted_tokens}" if offer.emitted_tokens else ""
            return f"-> offer {offer.work_id}#{offer.attempt} to {node_id}/{offer.engine_id}{after}"
        case contract.Send(node_id, Withdraw(work_id, attempt)):
            return f"-> withdraw {work_id}#{attempt} from {node_id}"
        case contract.Finish():
            fault = f" fault={thing.fault}" if thing.fault else ""
            return (
                f"-> finish {thing.work_id} {thing.state} {thing.reason}{fault} "
                f"output={thing.usage.output_tokens} "
                f"attempts={thing.attempts} continued={thing.continued} emitted={thing.emitted_tokens}"
            )
        case Accepted(work_id, attempt):
            return f"accepted {work_id}#{attempt}"
        case Refused(work_id, attempt, reason):
            return f"refused {work_id}#{attempt} {reason}"
        case Ended(work_id, attempt, frames, usage, fault):
            return f"ended {work_id}#{attempt} frames={frames} output={usage.output_tokens} fault={fault}"
        case contract.Arrived(work, draw):
            return f"arrived {work.id} {work.kind} {work.model} until {work.deadline_s:.4f} draw {draw:x}"
        case contract.Cancelled(work_id):
            return f"cancelled {work_id}"
        case contract.Paused(work_id, paused):
            return f"{'paused' if paused else 'reads on'} {work_id}"
        case contract.Left(node_id, generation):
            return f"left {node_id} generation {generation}"
        case _:
            return type(thing).__name__.lower()


def _report(report: NodeReport) -> str:
    engines = " ".join(
        f"{one.engine_id}.{one.generation}={one.running}/{one.slots}{'' if one.healthy else ' down'}"
        for one in report.engines
    )
    held = ",".join(f"{work_id}#{attempt}" for work_id, attempt in report.attempts)
    drains = " draining" if report.draining else ""
    return f"{report.node_id}.{report.generation} [{report.sequence}] {engines} holds ({held}){drains}"
