"""The program of the packet test: ``unshare --net --mount python packet_world.py FOLDER``.

It makes an internet (``packet_internet``) behind a cable, counts every TCP and UDP packet that leaves for an
address which is not one of that internet's few public servers, on any interface, and has the guarded fetcher
and a real gateway try all spellings. What happened is printed as JSON; the test judges it.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from gateway_process import GatewayProcess, gateway_process
from packet_internet import NAME_SERVER, SITE_V4, SITE_V6
from url_spellings import GATEWAY_V4, GATEWAY_V6, spellings

from groundswell.model.errors import GroundswellError
from groundswell.wire.fetch import Fetcher

HERE = Path(__file__).parent
CLIENT = "127.9.9.9"  # From where the test itself speaks to the gateway; nobody else does.
PRIVATE = "10.1.2.3"  # What the gateway's settings open.
PUBLIC = {ipaddress.ip_address(one) for one in (NAME_SERVER, SITE_V4, SITE_V6, PRIVATE)}
SETTINGS = 'nodes = []\n[gateway]\nhost = "127.0.0.1"\nallowed_hosts = ["gateway.site.example"]\n'
SETTINGS += f'[video]\nfetch_ports = [80, 443, 8443]\nfetch_private = ["{PRIVATE}"]\n'
PACKET_OUTGOING, SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE = 4, 263, 6, 33
REBINDS = 10
BODIES = [b"http://[", b"http://[::1", b"//[x", b"http://a\xb2\xff/", b"", b"\x00", b"http://" + b"a" * 900]


class Counter(threading.Thread):
    """Counts packets of this namespace that leave for where nothing may go. ``lost`` are those it missed."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[str] = []
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)

    def run(self) -> None:
        while True:
            data, (interface, _, direction, *_) = self._socket.recvfrom(128)
            if direction == PACKET_OUTGOING:
                self._judge(interface, data)

    def _judge(self, interface: str, data: bytes) -> None:
        if data[0] >> 4 == 4:
            protocol, source, target = data[9], data[12:16], data[16:20]
        else:
            protocol, source, target = data[6], data[8:24], data[24:40]
        from_ip, to_ip = ipaddress.ip_address(source), ipaddress.ip_address(target)
        # Neighbour discovery is the kernel's own; the client's packets, and answers to it, are the test's.
        if protocol in (6, 17) and to_ip not in PUBLIC and CLIENT not in (str(from_ip), str(to_ip)):
            self.seen.append(f"{interface}: {from_ip} to {to_ip}")

    def lost(self) -> int:
        statistics = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        return int(struct.unpack("II", statistics)[1])

    def settle(self) -> int:
        """How many there were by now: a packet of our own that comes last tells that all others were seen."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mark:
            before = len(self.seen)
            mark.sendto(b"mark", ("10.99.99.99", 9))
        while not any("10.99.99.99" in one for one in self.seen[before:]):
            time.sleep(0.005)
        self.seen = [one for one in self.seen if "10.99.99.99" not in one]
        return len(self.seen)


def sh(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True)


@contextlib.contextmanager
def internet(folder: Path) -> Iterator[None]:
    """A second namespace at the other end of a cable, which every packet that is not for us goes through."""
    (folder / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\noptions timeout:1 attempts:2\n")
    sh(f"mount --bind {folder}/resolv.conf /etc/resolv.conf; ip link set lo up")
    names = "DNS:site.example,DNS:site-v6.example"
    sh(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=site "
        f"-addext subjectAltName={names} -keyout {folder}/key.pem -out {folder}/ca.pem "
        f"2>{folder}/openssl.txt; "
        f"cat {folder}/key.pem {folder}/ca.pem > {folder}/both.pem"
    )
    os.environ["SSL_CERT_FILE"] = str(folder / "ca.pem")
    program = ["unshare", "--net", sys.executable, str(HERE / "packet_internet.py"), f"{folder}/both.pem"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as there:
        assert there.stdin is not None
        assert there.stdout is not None
        wait_for_namespace(there.pid)
        sh(
            f"ip link add inside type veth peer name outside netns {there.pid}; "
            f"ip addr add {GATEWAY_V4}/24 dev inside; ip addr add {GATEWAY_V6}/64 dev inside nodad; "
            "ip link set inside up"
        )
        sh(
            f"nsenter --net=/proc/{there.pid}/ns/net sh -ec '"
            "ip link set lo up; ip addr add 185.10.0.1/24 dev outside; "
            "ip addr add fe80::1/64 dev outside nodad; ip link set outside up; "
            f"ip route add {GATEWAY_V4}/32 dev outside table local; ip route add local default dev lo; "
            f"ip -6 route add {GATEWAY_V6}/128 dev outside table local; ip -6 route add local default dev lo'"
        )
        sh("ip route add default via 185.10.0.1; ip -6 route add default via fe80::1 dev inside")
        print("open", file=there.stdin, flush=True)
        assert there.stdout.readline() == "open\n"
        try:
            yield
        finally:
            there.kill()


def wait_for_namespace(pid: int) -> None:
    """Until the program is in a namespace of its own."""
    ours = os.readlink("/proc/self/ns/net")
    for _ in range(500):
        if os.readlink(f"/proc/{pid}/ns/net") != ours:
            return
        time.sleep(0.01)
    raise AssertionError("no namespace")


def open_services() -> None:
    """Services of the gateway's own machine, for those who get that far."""

    def hang_up(listener: socket.socket) -> None:
        while True:
            listener.accept()[0].close()

    for port in (80, 443):
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        threading.Thread(target=hang_up, args=(listener,), daemon=True).start()


def unguarded(counter: Counter, urls: list[str]) -> int:
    """How many of the spellings make an ordinary client send something where it should not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    dangerous = 0
    for url in urls:
        before = counter.settle()
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            opener.open(url, timeout=0.05).close()
        dangerous += counter.settle() > before
    return dangerous


async def direct(url: str) -> str:
    """What the guarded fetcher says to a URL."""
    try:
        body = b"".join([piece async for piece in Fetcher().fetch(url, 1 << 20)])
    except GroundswellError as error:
        return f"{error.status} {error.code}"
    return f"200 {body.decode('latin-1')}"


def posted(client: httpx.Client, url: str) -> dict[str, Any]:
    answer = client.post("/v1/transcodes", json={"input": {"url": url}})
    body = answer.json()
    keys = sorted(body.get("error") or {})
    code = body["error"]["code"] if keys else ""
    return {"url": url, "status": answer.status_code, "code": code, "keys": keys, "id": body.get("id", "")}


def ended(client: httpx.Client, job_id: str) -> str:
    """Why the job failed, or its state."""
    for _ in range(2000):
        job = client.get(f"/v1/transcodes/{job_id}").json()
        if job["status"] in ("done", "failed", "cancelled"):
            return str((job["error"] or {"code": job["status"]})["code"])
        time.sleep(0.02)
    raise AssertionError(f"{job_id} does not end: {job}")


def through_gateway(gateway: GatewayProcess, urls: list[str], redirects: list[str]) -> dict[str, Any]:
    """The same through ``POST /v1/transcodes``: what is refused at once, and what a job finds out later."""
    transport = httpx.HTTPTransport(local_address=CLIENT)
    with httpx.Client(
        base_url=gateway.url, headers=gateway.headers, transport=transport, timeout=30
    ) as client:
        own = [f"http://gateway.site.example/{n}" for n in range(2)]
        refused = [posted(client, url) for url in (*urls, *own, gateway.url, f"{gateway.url}/v1/models")]
        opened = [f"http://{PRIVATE}/", "http://site.example:8443/"]
        accepted = [posted(client, url) for url in (*redirects, *opened)]
        later = {one["url"]: ended(client, one["id"]) for one in accepted if one["id"]}
    return {"refused": refused, "accepted": accepted, "later": later}


def main(folder: Path) -> dict[str, Any]:
    urls = spellings()
    hidden = [f"http://site.example/to/{url.encode(errors='surrogatepass').hex()}" for url in urls]
    hidden += [f"http://site.example/to/{body.hex()}" for body in BODIES]
    hidden = list(dict.fromkeys(url for url in hidden if len(url) <= 2000))
    # Two steps away, too far away, and from https to less.
    inner = b"http://site.example/to/" + b"http://169.254.169.254/".hex().encode()
    hidden += [f"http://site.example/to/{inner.hex()}", "http://site.example/hops/20"]
    hidden.append("https://site.example/to/" + b"http://site.example/".hex())
    with internet(folder):
        counter = Counter()
        counter.start()
        open_services()
        report: dict[str, Any] = {"spellings": len(urls), "redirects": len(hidden)}
        report["good"] = [
            asyncio.run(direct(url))
            for url in (
                "http://site.example/", "https://site.example/", "http://site-v6.example/", f"http://{SITE_V4}/",
                f"http://[{SITE_V6}]/", "http://SITE.example.:80/", "http://site.example/hops/3",
                "http://site.example/to/" + b"HTTPS://site.example/".hex(),
            )
        ]  # fmt: skip
        report["bad_certificate"] = asyncio.run(direct(f"https://{SITE_V4}/"))
        report["direct"] = {url: asyncio.run(direct(url)) for url in urls}
        report["redirected"] = {url: asyncio.run(direct(url)) for url in hidden}
        rebinding = [f"http://rebind-{n}.example/" for n in range(REBINDS)]
        report["rebound"] = [asyncio.run(direct(url)) for url in rebinding + rebinding]
        report["asked"] = asyncio.run(direct("http://site.example/asked/rebind-0.example"))
        report["packets_direct"] = counter.settle()
        with gateway_process(folder / "gateway", SETTINGS) as gateway:
            again = [f"http://rebind-http-{n}.example/" for n in range(REBINDS)]
            report["http"] = through_gateway(gateway, urls, hidden + again)
            report["packets"] = counter.settle()
        report["where"] = counter.seen[:20]
        # Last, because what these leave open sends packets later on.
        report["dangerous"] = unguarded(counter, urls)
        report["canary"] = {
            url: unguarded(counter, [url])
            for url in ("http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/", "http://10.0.0.1/")
        }
        report["lost"] = counter.lost()
    return report


if __name__ == "__main__":
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # Where ip lies.
    print(json.dumps(main(Path(sys.argv[1]))))
