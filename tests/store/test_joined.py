"""Nodes of other machines: who was invited, and who came."""

from __future__ import annotations

import asyncio

import pytest
from hand_clock import HandClock

from groundswell.model.errors import BadRequest, Conflict, NotFound, Unauthorized
from groundswell.store.joined import JoinedNodes
from groundswell.store.sql import Store


@pytest.fixture
async def joined(store: Store, clock: HandClock) -> JoinedNodes:
    joined = JoinedNodes(store, clock)
    await joined.load()
    return joined


async def test_an_invite_lets_one_key_in_and_no_second(joined: JoinedNodes) -> None:
    """Whoever finds an old invite in a chat's history has found nothing."""
    invite = (await joined.invite("gpu", 60)).hex()
    assert await joined.admit("UA", invite) == "gpu"
    assert await joined.admit("UA", invite) == "gpu"
    assert await joined.admit("UA", "") == "gpu"
    with pytest.raises(Unauthorized):
        await joined.admit("UB", invite)


async def test_of_many_that_redeem_an_invite_at_once_one_wins(joined: JoinedNodes) -> None:
    """Two nodes with one id would each run what is offered to the other."""
    invite = (await joined.invite("gpu", 60)).hex()
    ends = await asyncio.gather(
        *(joined.admit(f"U{number}", invite) for number in range(20)), return_exceptions=True
    )
    assert [end for end in ends if isinstance(end, str)] == ["gpu"]
    assert sum(isinstance(end, Unauthorized) for end in ends) == 19


async def test_an_invite_expires(joined: JoinedNodes, clock: HandClock) -> None:
    """It is meant for now."""
    invite = (await joined.invite("gpu", 60)).hex()
    clock.now_s += 61
    with pytest.raises(Unauthorized):
        await joined.admit("UA", invite)


@pytest.mark.parametrize("invite", ["", "00" * 16, "not hex", "0" * 100_000])
async def test_what_is_no_invite_lets_nobody_in(joined: JoinedNodes, invite: str) -> None:
    """Strangers knock, too."""
    await joined.invite("gpu", 60)
    with pytest.raises(Unauthorized):
        await joined.admit("UA", invite)


async def test_a_node_that_was_removed_stays_out(joined: JoinedNodes) -> None:
    """Its key is worth nothing any more, nor is its invite; its name can be given again."""
    invite = (await joined.invite("gpu", 60)).hex()
    await joined.admit("UA", invite)
    with pytest.raises(Conflict):
        await joined.invite("gpu", 60)
    await joined.remove("gpu")
    with pytest.raises(Unauthorized):
        await joined.admit("UA", invite)
    with pytest.raises(NotFound):
        await joined.remove("gpu")
    assert await joined.admit("UB", (await joined.invite("gpu", 60)).hex()) == "gpu"


async def test_who_joined_is_known_after_a_restart(store: Store, joined: JoinedNodes) -> None:
    """A gateway that starts anew finds its nodes at the door."""
    await joined.admit("UA", (await joined.invite("gpu", 60)).hex())
    again = JoinedNodes(store)
    await again.load()
    assert again.ids() == ["gpu"]
    assert await again.admit("UA", "") == "gpu"


@pytest.mark.parametrize(("node_id", "expires_s"), [("", 60), ("a b", 60), ("a>", 60), ("a", 0), ("a", 1e9)])
async def test_an_unfit_invite_is_refused(joined: JoinedNodes, node_id: str, expires_s: float) -> None:
    """An id becomes part of a subject, and an invite for ever is a key that nobody guards."""
    with pytest.raises(BadRequest):
        await joined.invite(node_id, expires_s)


async def test_a_node_that_is_banned_is_let_in_again_later(joined: JoinedNodes, clock: HandClock) -> None:
    """A flood may be a defect that its owner mends."""
    await joined.admit("UA", (await joined.invite("gpu", 60)).hex())
    joined.ban("gpu", 300)
    with pytest.raises(Unauthorized):
        await joined.admit("UA", "")
    clock.now_s += 301
    assert await joined.admit("UA", "") == "gpu"
