"""No URL of a stranger makes the gateway send a packet to an address that is not public: they are counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces to count packets in needs root"),
]
HERE = Path(__file__).parent
# A redirect may be to a relative address, which leads to the public server again, or to nothing readable.
HARMLESS = {"422 url_rejected", "422 url_failed", "502 url_failed", "200 reached"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened in the closed world of ``packet_world``."""
    folder = tmp_path_factory.mktemp("packets")
    program = ["unshare", "--net", "--mount", "--propagation", "private", sys.executable]
    done = subprocess.run(
        [*program, str(HERE / "packet_world.py"), str(folder)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=200,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_no_packet_leaves_for_an_address_that_is_not_public(report: dict[str, Any]) -> None:
    """The one figure that counts: fetched directly, by redirect, by rebinding, and through HTTP."""
    assert report["spellings"] >= 150
    assert report["redirects"] >= 150
    assert (report["packets_direct"], report["packets"], report["where"]) == (0, 0, [])


def test_the_counter_sees_what_an_unguarded_client_does(report: dict[str, Any]) -> None:
    """A counter that never counts would prove anything; and the spellings are real ones."""
    assert set(report["canary"].values()) == {1}
    assert report["dangerous"] >= 100
    assert report["lost"] == 0


def test_every_spelling_is_refused_in_the_one_error_shape(report: dict[str, Any]) -> None:
    """422 with a code that programs can read; also for the gateway's own addresses and names."""
    assert set(report["direct"].values()) == {"422 url_rejected"}
    refused = report["http"]["refused"]
    assert len(refused) >= report["spellings"] + 4
    for one in refused:
        wanted = (422, "url_rejected", ["code", "message", "param", "type"])
        assert (one["status"], one["code"], one["keys"]) == wanted, one["url"]


def test_redirects_are_judged_like_first_addresses(report: dict[str, Any]) -> None:
    """One hop from a public server to the cloud's metadata is the usual way in."""
    assert set(report["redirected"].values()) <= HARMLESS
    later = report["http"]["later"]
    assert len(later) == len(report["http"]["accepted"])
    assert set(later.values()) <= {"url_rejected", "url_failed", "media_rejected"}
    assert sum(code == "url_rejected" for code in later.values()) >= 250


def test_a_name_that_changes_its_address_is_asked_once_for_each_fetch(report: dict[str, Any]) -> None:
    """Public for the check and loopback for the connection: what is dialled is what was checked."""
    half = len(report["rebound"]) // 2
    assert set(report["rebound"][:half]) == {"200 reached"}
    assert set(report["rebound"][half:]) == {"422 url_rejected"}
    assert report["asked"] == "200 2 2"
    rebound = {code for url, code in report["http"]["later"].items() if "//rebind-http-" in url}
    assert rebound == {"url_rejected"}


def test_what_the_settings_open_is_open(report: dict[str, Any]) -> None:
    """A private network's own servers, and other ports, by the operator's word."""
    later = report["http"]["later"]
    assert later["http://10.1.2.3/"] == "media_rejected"
    assert later["http://site.example:8443/"] == "url_failed"


def test_the_open_internet_is_still_reached(report: dict[str, Any]) -> None:
    """A guard that refuses everything is no use; a certificate of somebody else's is not accepted."""
    assert set(report["good"]) == {"200 reached"}
    assert report["bad_certificate"] == "502 url_failed"
