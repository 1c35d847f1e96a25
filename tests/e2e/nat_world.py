"""The program of the NAT test: ``python nat_world.py FOLDER`` in the namespace of the gateway's machine.

The test has made three machines: this one, a node's, and between them a router that masquerades the node and
lets nothing new come in. Here a gateway is opened, the node's machine joins through the router, and is made
to work while the cable is pulled. What happened is printed as JSON; the test judges it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from gateway_process import GatewayProcess, gateway_process
from machine import invite, machine
from tests.clips import clip

GATEWAY, NODE = "10.77.0.1", "192.168.77.2"
OFFERS = '[[nodes]]\nid = "x"\n[[nodes.engines]]\nkind = "emulated"\n[[nodes.engines]]\nkind = "transcode"\n'
BODY = {
    "model": "emulated",
    "messages": [{"role": "user", "content": "Tell me."}],
    "max_tokens": 400,
    "seed": 3,
}


def answer(gateway: GatewayProcess, cut: list[str]) -> str:
    """One streamed answer; in the middle of it the cable is out for a while."""
    text, events = "", 0
    streamed = {**BODY, "stream": True}
    with (
        gateway.client() as client,
        client.stream("POST", "/v1/chat/completions", json=streamed) as response,
    ):
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return text
            if not line.startswith("data: "):
                continue
            event = json.loads(line[6:])
            for choice in event.get("choices", ()):
                text += choice["delta"].get("content") or ""
            if "error" in event:
                return f"broken: {event}"
            events += 1
            if events == 20 and cut:
                subprocess.run([*cut, "down"], check=True)
                time.sleep(1.5)
                subprocess.run([*cut, "up"], check=True)
    return "no end"


def transcode(gateway: GatewayProcess) -> dict[str, Any]:
    """A whole transcode, as its job ends."""
    with gateway.client() as client, clip("plain.mp4").open("rb") as file:
        job = client.post("/v1/transcodes", files={"file": file}, data={"ladder": '["144p"]'})
        assert job.status_code == 202, job.text
        deadline = time.monotonic() + 60
        while True:
            found: dict[str, Any] = client.get(f"/v1/transcodes/{job.json()['id']}").json()
            if found["status"] not in ("queued", "running") or time.monotonic() > deadline:
                return found
            time.sleep(0.1)


def reaches(address: str) -> bool:
    """Whether anything of the node's machine can be reached from here."""
    for port in (22, 80, 4222):
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=0.5):
            return True
    return False


def main(folder: Path, node_namespace: str, router: str, inside: str) -> dict[str, Any]:
    there = ["ip", "netns", "exec", node_namespace]
    cable = ["ip", "netns", "exec", router, "ip", "link", "set", inside]
    with gateway_process(folder / "gateway", "nodes = []\n", ("--open", GATEWAY)) as gateway:
        with machine(folder / "node", invite(gateway, "behind-nat"), OFFERS, before=there) as node:
            gateway.wait_for_model("emulated")
            undisturbed = answer(gateway, [])
            report = {
                "same_over_a_cut": answer(gateway, cable) == undisturbed and len(undisturbed) > 500,
                "transcode": transcode(gateway),
                "reached_from_outside": reaches(NODE),
            }
            node.kill()
        with machine(folder / "node", None, OFFERS, before=there):
            gateway.wait_for_model("emulated")
            report["same_after_a_kill"] = answer(gateway, []) == undisturbed
    return report


if __name__ == "__main__":
    os.environ["PYTHONUNBUFFERED"] = "1"
    print(json.dumps(main(Path(sys.argv[1]), *sys.argv[2:5])))
