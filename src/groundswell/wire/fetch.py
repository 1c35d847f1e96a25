"""Fetching a URL that a stranger wrote, without letting it reach anything of ours.

Theory of operation. Parse strictly; resolve the name once; *every* address it has must be a public one;
then dial one of those very addresses, with the original name in ``Host`` and in the TLS handshake, so that
a second answer of the name server cannot change the target (DNS rebinding). A redirect starts from the
beginning, at most three times. Size and time are bounded, and nothing is decompressed, so there is no bomb
to go off. Proxies, cookies and credentials do not exist here.

An address of this very machine is refused even when it is a public one: behind it are our own services.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from groundswell.model.errors import GroundswellError, TooLarge, Unprocessable, UpstreamError

REDIRECTS_MAX = 3
URL_BYTES_MAX = 2048
HEAD_BYTES_MAX = 32 << 10
HEAD_LINES_MAX = 100
PIECE_BYTES = 256 << 10
RESOLVERS_MAX = 8  # Threads of their own, so that a name server that hangs holds up nothing but other URLs.
LENGTH_DIGITS_MAX = 18  # Beyond any file; Python refuses to read numbers of thousands of digits.
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z")
_URL = re.compile(r"[!#-;=?-\[\]_a-z~]+\Z")  # Printable ASCII without blanks, quotes, backslash and <>^`{|}.
_AUTHORITY = re.compile(r"([^:\[\]@%]+|\[[0-9A-Fa-f:.]+\])(:\d{0,5})?\Z")
_PORTS = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Global by the registry, or by nobody's word, and still not for strangers: cloud metadata, NAT64, tunnels.
_REFUSED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32",
        "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "fec0::/10", "3fff::/20",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FetchRules:
    """What may be fetched.

    ``allow`` holds host names and networks that are exempt from the address check, for the servers of a
    private network; ``refuse`` names and networks that are never fetched from, such as our own. ``only``,
    when not empty, lists the only host names that are fetched from. All of them in lower case.
    """

    ports: frozenset[int] = frozenset({80, 443})
    allow: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    connect_s: float = 10.0
    idle_s: float = 15.0
    total_s: float = 3600.0
    rate_bytes_min: int = 16 << 10


@dataclass(frozen=True, slots=True)
class Target:
    """One hop, checked: dial ``addresses`` and nothing else."""

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Fetcher:
    """Fetches by the rules. ``resolve`` is the name server; tests put their own answers there."""

    def __init__(self, rules: FetchRules = FetchRules()) -> None:
        self._rules = rules
        self._threads = ThreadPoolExecutor(RESOLVERS_MAX, "resolve")

    async def resolve(self, host: str, port: int) -> list[str]:
        """All addresses of a name. Raises ``OSError``."""

        def ask() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(entry[4][0]) for entry in found))

        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    async def check(self, url: str) -> Target:
        """Parse and resolve a URL; raises ``Unprocessable`` (``url_rejected``) when it is refused."""
        scheme, host, port, path = parse(url)
        if port not in self._rules.ports:
            raise _rejected("The URL's port is not one that is fetched from.")
        name = host.removesuffix(".")
        if name in self._rules.refuse or (self._rules.only and name not in self._rules.only):
            raise _rejected("The URL's host is not on the list of those that are fetched from.")
        try:
            async with asyncio.timeout(self._rules.connect_s):
                addresses = await self.resolve(host, port)
        except (OSError, UnicodeError, TimeoutError) as error:
            raise _rejected("The URL's host cannot be found.") from error
        if not addresses or not all(self._may_dial(name, address) for address in addresses):
            raise _rejected("The URL leads to an address that is not public.")
        return Target(scheme, host, port, path, tuple(addresses))

    async def fetch(self, url: str, limit_bytes: int) -> AsyncIterator[bytes]:
        """The body, piece by piece.

        Raises ``Unprocessable`` (``url_rejected``, ``url_failed``), ``TooLarge`` or ``UpstreamError``
        (``url_failed``: worth another try).
        """
        try:
            async with asyncio.timeout(self._rules.total_s):
                connection = await self._follow(url)
                try:
                    async for piece in connection.body(limit_bytes, self._rules):
                        yield piece
                finally:
                    connection.close()
        except TimeoutError as error:
            raise UpstreamError("Fetching the URL took too long.", code="url_failed") from error
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError) as error:
            raise UpstreamError("The URL's server broke off.", code="url_failed") from error

    async def _follow(self, url: str) -> _Connection:
        for _ in range(REDIRECTS_MAX + 1):
            target = await self.check(url)
            connection = await self._dial(target)
            try:
                async with asyncio.timeout(self._rules.idle_s):
                    status = await connection.ask()
                if status == 200:
                    return connection
                location = connection.headers.get("location", "")
                if status not in (301, 302, 303, 307, 308) or not location:
                    raise _answered(status)
            except BaseException:
                connection.close()
                raise
            connection.close()
            try:
                following = urljoin(url, location)
            except ValueError as error:
                raise _rejected("The URL redirects to one that cannot be read.") from error
            if target.scheme == "https" and not following.lower().startswith("https:"):
                raise _rejected("The URL redirects from https to something less.")
            url = following
        raise _rejected(f"The URL redirects more than {REDIRECTS_MAX} times.")

    async def _dial(self, target: Target) -> _Connection:
        context = ssl.create_default_context() if target.scheme == "https" else None
        last: Exception = OSError("no address")
        for address in target.addresses:
            try:
                async with asyncio.timeout(self._rules.connect_s):
                    reader, writer = await asyncio.open_connection(
                        address, target.port, ssl=context, limit=HEAD_BYTES_MAX,
                        server_hostname=target.host if context else None,
                    )  # fmt: skip
                return _Connection(target, reader, writer)
            except (OSError, TimeoutError) as error:
                last = error
        raise UpstreamError("The URL's server cannot be reached.", code="url_failed") from last

    def _may_dial(self, host: str, text: str) -> bool:
        address = ipaddress.ip_address(text.partition("%")[0])
        if _within(address, self._rules.refuse):
            return False
        if host in self._rules.allow or _within(address, self._rules.allow):
            return True
        return is_public(address) and not is_ours(address)


def parse(url: str) -> tuple[str, str, int, str]:
    """(scheme, host, port, path with query) of an http or https URL, by one strict reading.

    Raises ``Unprocessable`` (``url_rejected``).
    """
    if len(url) > URL_BYTES_MAX or not _URL.match(url):
        raise _rejected("The URL is too long or has characters that do not belong in one.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _rejected("The URL cannot be read.") from error
    if parts.scheme not in _PORTS or not url.lower().startswith(f"{parts.scheme}://"):
        raise _rejected("Only http and https URLs are fetched.")
    host = parts.hostname or ""
    if not _AUTHORITY.match(parts.netloc) or not _is_host(host):
        raise _rejected("The URL's host cannot be used.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, host, _PORTS[parts.scheme] if port is None else port, path


def _is_host(host: str) -> bool:
    """A name or a plain address. Numbers that only some programs take for an address are neither."""
    if ":" in host:
        with contextlib.suppress(ValueError):
            return ipaddress.IPv6Address(host) is not None
        return False
    labels = host.removesuffix(".").split(".")
    if not host or len(host) > 253 or not all(_LABEL.match(label) for label in labels):
        return False
    if labels[-1].isdigit() or labels[-1].lower().startswith("0x"):
        with contextlib.suppress(ValueError):
            return str(ipaddress.IPv4Address(host)) == host
        return False
    return True


def is_public(address: Address) -> bool:
    """Whether this is an address of the open internet, whatever form it hides in."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    return not any(address.version == network.version and address in network for network in _REFUSED)


def is_ours(address: Address) -> bool:
    """Whether this machine has the address itself.

    Connecting a datagram socket sends nothing; the kernel only chooses the source address, which is the
    destination itself when that is local.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        return bool(ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]) == address)
    return False


def _within(address: Address, entries: Sequence[str]) -> bool:
    for entry in entries:
        with contextlib.suppress(ValueError):
            network = ipaddress.ip_network(entry)
            if address.version == network.version and address in network:
                return True
    return False


class _Connection:
    """One request on one connection."""

    def __init__(self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.headers: dict[str, str] = {}
        self._target, self._reader, self._writer = target, reader, writer

    async def ask(self) -> int:
        """Send the request, read the head; the status."""
        head = (
            f"GET {self._target.path} HTTP/1.1\r\nHost: {self._target.authority}\r\n"
            "User-Agent: groundswell\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
        )
        self._writer.write(head.encode("ascii"))
        await self._writer.drain()
        try:
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.LimitOverrunError as error:
            raise _failed("The URL's server answered with too many headers.") from error
        match = re.match(r"HTTP/1\.[01] (\d{3})(?: |$)", lines[0])
        if match is None or len(lines) > HEAD_LINES_MAX:
            raise _failed("The URL's server does not speak HTTP as we know it.")
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        return int(match[1])

    async def body(self, limit_bytes: int, rules: FetchRules) -> AsyncIterator[bytes]:
        """The body, unencoded, no larger than the limit, no slower than the minimal rate."""
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise _failed("The URL's server compresses what was asked for plainly.")
        length = self.headers.get("content-length")
        if length is not None and not re.fullmatch(r"[0-9]+", length):
            raise _failed("The URL's server does not speak HTTP as we know it.")
        if length is not None and (len(length) > LENGTH_DIGITS_MAX or int(length) > limit_bytes):
            raise TooLarge(f"The file at the URL is larger than {limit_bytes} bytes.")
        chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        loop = asyncio.get_running_loop()
        began_s, size = loop.time(), 0
        pieces = self._chunks() if chunked else self._plain(None if length is None else int(length))
        while True:
            async with asyncio.timeout(rules.idle_s):
                piece = await anext(pieces, b"")
            if not piece:
                return
            size += len(piece)
            if size > limit_bytes:
                raise TooLarge(f"The file at the URL is larger than {limit_bytes} bytes.")
            elapsed_s = loop.time() - began_s
            if elapsed_s > rules.idle_s and size < rules.rate_bytes_min * elapsed_s:
                raise _failed("The URL's server sends too slowly.")
            yield piece

    async def _plain(self, length: int | None) -> AsyncIterator[bytes]:
        left = length
        while left is None or left > 0:
            piece = await self._reader.read(PIECE_BYTES if left is None else min(left, PIECE_BYTES))
            if not piece:
                if left:
                    raise asyncio.IncompleteReadError(b"", left)
                return
            left = None if left is None else left - len(piece)
            yield piece

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            try:
                line = await self._reader.readuntil(b"\r\n")
            except asyncio.LimitOverrunError:
                line = b""
            digits = line.strip().partition(b";")[0]
            if len(line) > 200 or not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", digits):
                raise _failed("The URL's server does not speak HTTP as we know it.")
            left = int(digits, 16)
            if left == 0:
                return
            while left:
                piece = await self._reader.read(min(left, PIECE_BYTES))
                if not piece:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(piece)
                yield piece
            await self._reader.readexactly(2)

    def close(self) -> None:
        self._writer.transport.abort()


def _rejected(message: str) -> Unprocessable:
    return Unprocessable(message, code="url_rejected", param="input.url")


def _failed(message: str) -> Unprocessable:
    return Unprocessable(message, code="url_failed", param="input.url")


def _answered(status: int) -> GroundswellError:
    message = f"The URL's server answered with status {status}."
    if status == 429 or status >= 500:
        return UpstreamError(message, code="url_failed")
    return _failed(message)
