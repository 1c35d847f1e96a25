"""Two machines with a router between them that hides one: only outgoing connections are possible."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
NFT = shutil.which("nft") or "/usr/sbin/nft"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces with a NAT router needs root"),
    pytest.mark.skipif(not Path(NFT).exists(), reason="a NAT router needs nftables"),
]
RULES = """
table ip nat {
  chain out { type nat hook postrouting priority srcnat; oifname "OUTSIDE" masquerade; }
}
table ip guard {
  counter came_in { }
  chain through {
    type filter hook forward priority filter;
    ct state established,related accept
    iifname "OUTSIDE" counter name came_in drop
  }
}
"""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def namespaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """The gateway's, the router's and the node's namespace."""
    names = tuple(f"gsw-{what}-{os.getpid()}" for what in ("gw", "rt", "nd"))
    gateway, router, node = names
    inside = {name: ("ip", "netns", "exec", name) for name in names}
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run(*inside[name], "ip", "link", "set", "lo", "up")
        for name, there, here, peer, address, router_address in (
            (gateway, "eth0", "out0", "outside", "10.77.0.1/24", "10.77.0.254/24"),
            (node, "eth0", "in0", "inside", "192.168.77.2/24", "192.168.77.1/24"),
        ):
            run(*inside[router], "ip", "link", "add", peer, "type", "veth", "peer", "name", here)
            run(*inside[router], "ip", "link", "set", here, "netns", name, "name", there)
            run(*inside[name], "ip", "addr", "add", address, "dev", there)
            run(*inside[name], "ip", "link", "set", there, "up")
            run(*inside[router], "ip", "addr", "add", router_address, "dev", peer)
            run(*inside[router], "ip", "link", "set", peer, "up")
        run(*inside[node], "ip", "route", "add", "default", "via", "192.168.77.1")
        # Even one that knows the way to the hidden network comes to the router's closed door.
        run(*inside[gateway], "ip", "route", "add", "192.168.77.0/24", "via", "10.77.0.254")
        run(*inside[router], "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        rules = tmp_path_factory.mktemp("nat") / "rules"
        rules.write_text(RULES.replace("OUTSIDE", "outside"))
        run(*inside[router], NFT, "-f", str(rules))
        yield gateway, router, node
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_a_machine_behind_nat_works_like_any_other(namespaces: tuple[str, str, str], tmp_path: Path) -> None:
    """Most machines at people's homes are behind such a router; nothing has to be opened there."""
    gateway, router, node = namespaces
    program = [sys.executable, str(HERE / "nat_world.py"), str(tmp_path), node, router, "inside"]
    done = subprocess.run(
        ["ip", "netns", "exec", gateway, *program], stdout=subprocess.PIPE, check=True, timeout=200
    )
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["same_over_a_cut"]
    assert report["same_after_a_kill"]
    assert report["transcode"]["status"] == "done"
    assert {one["node"] for one in report["transcode"]["segments"]} == {"behind-nat"}
    assert not report["reached_from_outside"]
    counted = run("ip", "netns", "exec", router, NFT, "list", "counter", "ip", "guard", "came_in")
    assert int(re.findall(r"packets (\d+)", counted)[0]) > 0, "the router was not asked: it proves nothing"
