"""The internet of the packet test: a program for a network namespace in which every address is its own.

Whatever address is dialled, a web server answers, so that a guard which lets one packet through is seen to.
The name server says what the names of ``url_spellings`` need, without lifetimes, and counts what it is asked:
``http://site.example/asked/NAME`` tells how often. ``/to/HEX`` redirects to the URL that HEX spells.
"""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import socket
import ssl
import struct
import sys
from pathlib import Path

SITE_V4, SITE_V6 = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
NAME_SERVER = "9.9.9.9"
A, CNAME, AAAA = 1, 5, 28
FIXED: dict[str, list[str]] = {
    "site.example": [SITE_V4, SITE_V6],
    "mixed.evil.example": [SITE_V4, "127.0.0.1"],
    "both.evil.example": [SITE_V4, "::1"],
    "mapped.evil.example": [SITE_V4, "::ffff:169.254.169.254"],
    "many.evil.example": [*[f"93.184.215.{n}" for n in range(1, 15)], "10.0.0.1"],
    "empty.evil.example": [],
    "cname-localhost.evil.example": ["127.0.0.1", "::1"],
    "cname-inside.evil.example": ["169.254.169.254"],
    "site-v6.example": [SITE_V6],
}


class NameServer(asyncio.DatagramProtocol):
    """Answers A and AAAA questions. ``rebind…`` names are public the first time and loopback from then on."""

    def __init__(self) -> None:
        self.asked: collections.Counter[tuple[str, int]] = collections.Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        labels, at = [], 12
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode("latin-1"))
            at += 1 + length
        kind = struct.unpack_from(">H", data, at + 1)[0]
        question, name = data[12 : at + 5], ".".join(labels).lower()
        self.asked[name, kind] += 1
        found = self._addresses(name, kind)
        code = 2 if name.startswith("fail.") else 3 if found is None else 0
        records = [self._record(*one) for one in self._aliases(name, found or []) if one[1] in (kind, CNAME)]
        head = data[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(records), 0, 0)
        self._transport.sendto(head + question + b"".join(records), addr)  # type: ignore[attr-defined]

    def _addresses(self, name: str, kind: int) -> list[str] | None:
        if name.startswith("rebind"):
            return [SITE_V4] if self.asked[name, kind] == 1 else ["127.0.0.1"]
        if name.startswith(("four-", "six-")):
            value = int(name.partition("-")[2].partition(".")[0], 16)
            four = name.startswith("four-")
            return [str(ipaddress.IPv4Address(value) if four else ipaddress.IPv6Address(value))]
        return FIXED.get(name)

    @staticmethod
    def _aliases(name: str, found: list[str]) -> list[tuple[str, int, bytes]]:
        """The records of a name; ``cname-`` ones take a detour."""
        wire = _wire(name)
        records = []
        if name.startswith("cname-"):
            alias = _wire("localhost" if "localhost" in name else "metadata.inside.example")
            records.append((wire, CNAME, alias))
            wire = alias
        for address in found:
            packed = ipaddress.ip_address(address).packed
            records.append((wire, A if len(packed) == 4 else AAAA, packed))
        return records  # type: ignore[return-value]

    @staticmethod
    def _record(name: bytes, kind: int, content: bytes) -> bytes:
        return name + struct.pack(">HHIH", kind, 1, 0, len(content)) + content


def _wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


class Web:
    """Answers anybody, on whatever address."""

    def __init__(self, names: NameServer) -> None:
        self._names = names

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
            writer.write(self._answer(path))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, ValueError, IndexError):
            pass
        writer.close()

    def _answer(self, path: str) -> bytes:
        if path.startswith("/to/"):
            return b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % bytes.fromhex(
                path[4:]
            )
        if path.startswith("/hops/") and (left := int(path[6:])):
            return b"HTTP/1.1 307 Go\r\nLocation: /hops/%d\r\nContent-Length: 0\r\n\r\n" % (left - 1)
        body = b"reached"
        if path.startswith("/asked/"):
            asked = self._names.asked
            body = b"%d %d" % (asked[path[7:], A], asked[path[7:], AAAA])
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def main(certificate: Path) -> None:
    loop = asyncio.get_running_loop()
    names = NameServer()
    await loop.create_datagram_endpoint(lambda: names, (NAME_SERVER, 53), family=socket.AF_INET)
    web = Web(names)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    for host in ("0.0.0.0", "::"):
        await asyncio.start_server(web.serve, host, 80, backlog=1024)
        await asyncio.start_server(web.serve, host, 443, ssl=context, backlog=1024)
    print("open", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.stdin.readline()  # The namespace is ready when it says so.
    asyncio.run(main(Path(sys.argv[1])))
