"""Who comes in: proofs, invites, and what strangers may show instead."""

from __future__ import annotations

import base64
import contextlib
import os
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundswell.bus import invite
from groundswell.bus.door import admission, knock_of, token_of
from groundswell.bus.nkeys import ACCOUNT, Key, claims_of, signed_by
from groundswell.bus.records import Malformed
from groundswell.model.errors import BadRequest

NODE, ISSUER = Key(bytes(range(32))), Key(bytes(32), ACCOUNT)


def asked(connect_opts: Any, nonce: Any = "the nonce") -> bytes:
    """The server's question, as it sends it."""
    claims = {
        "nats": {
            "server_id": {"id": "N1"},
            "user_nkey": "UX",
            "client_info": {"id": 7, "nonce": nonce},
            "connect_opts": connect_opts,
        }
    }
    return b"e30." + base64.urlsafe_b64encode(msgspec.json.encode(claims)).rstrip(b"=") + b".x"


def shown(key: Key, secret: str = "") -> dict[str, Any]:
    options = token_of(key, secret)
    return {"auth_token": options["token"], "sig": options["signature_cb"]("the nonce").decode()}


def test_a_key_is_written_as_nats_writes_it() -> None:
    """The server takes a name only with its kind and checksum right, and so do we."""
    assert NODE.name.startswith("U")
    assert ISSUER.name.startswith("A")
    assert len(NODE.name) == 56
    assert signed_by(NODE.name, base64.b64encode(NODE.sign(b"x")).decode(), b"x")
    assert not signed_by(NODE.name, base64.b64encode(NODE.sign(b"x")).decode(), b"y")
    assert not signed_by(NODE.name[:-1] + "A", base64.b64encode(NODE.sign(b"x")).decode(), b"x")


def test_who_proves_a_key_is_known_by_it_and_bound_to_its_subjects() -> None:
    """The token is all that the server goes by."""
    knock = knock_of(asked(shown(NODE, "00" * 16)))
    assert (knock.key, knock.invite, knock.connection) == (NODE.name, "00" * 16, 7)
    answer = claims_of(admission(knock, "a.b", ISSUER))
    assert (answer["iss"], answer["aud"], answer["sub"]) == (ISSUER.name, "N1", "UX")
    user = claims_of(answer["nats"]["jwt"].encode())
    assert user["nats"]["pub"] == {"allow": ["node.a~b.*"]}
    assert user["nats"]["sub"] == {"allow": ["job.a~b.*"]}


@pytest.mark.parametrize(
    ("options", "nonce"),
    [
        ({}, "the nonce"),
        (shown(NODE), "another nonce"),
        ({**shown(NODE), "auth_token": Key(b"x" * 32).name}, "the nonce"),
        ({**shown(NODE), "sig": ""}, "the nonce"),
        ({**shown(NODE), "sig": None}, "the nonce"),
        (shown(NODE), None),
        ("nonsense", "the nonce"),
    ],
    ids=["nothing", "old proof", "another's key", "no proof", "null", "no nonce", "nonsense"],
)
def test_who_proves_nothing_is_not_let_in(options: Any, nonce: Any) -> None:
    """A key that was overheard is worth nothing; so is a proof that was."""
    with pytest.raises(Malformed):
        knock_of(asked(options, nonce))


words = st.none() | st.text() | st.integers() | st.lists(st.text())


@given(st.dictionaries(st.sampled_from(["auth_token", "sig", "user"]), words), words)
def test_whatever_a_stranger_shows_raises_nothing_else(options: dict[str, Any], nonce: Any) -> None:
    """An exception here would be one stranger's way to silence the door."""
    with contextlib.suppress(Malformed):
        knock_of(asked(options, nonce))


def test_an_invite_is_read_as_it_was_written() -> None:
    """It travels by chat, mail and paper."""
    made = invite.Invite("10.0.0.1", 4222, "gpu-1", os.urandom(16), os.urandom(32))
    assert invite.read(f"  {made.text()}\n") == made
    assert len(made.text()) < 130


@given(st.text() | st.binary().map(lambda data: invite.PREFIX + base64.urlsafe_b64encode(data).decode()))
def test_any_other_text_is_no_invite(text: str) -> None:
    """Half an invite is the owner's mistake, with a sentence that says so."""
    with pytest.raises(BadRequest):
        invite.read(text)
