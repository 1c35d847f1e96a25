"""A URL of a stranger reaches the open internet, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from groundswell.model.errors import GroundswellError, TooLarge, Unprocessable, UpstreamError
from groundswell.wire.fetch import Fetcher, FetchRules, is_ours, is_public, parse

REFUSED_URLS = [
    "file:///etc/passwd", "gopher://host/", "ftp://host/", "data:text/plain,x", "http:host", "http:///path",
    "//host/", "host/path", "", "http://", "http://user@host/", "http://user:pass@host/", "http://host\\@other/",
    "http://ho st/", "http://host/\n", "http://host/\x00", "http://host:99999/", "http://host:x/", "http://[::1/",
    "http://127.1/", "http://0/", "http://2130706433/", "http://0x7f000001/", "http://0x7f.0.0.1/",
    "http://0177.0.0.1/", "http://127.0.0.1.5/", "http://256.1.1.1/", "http://１２７.0.0.1/", "http://a..b/",
    "http://-a/", "http://" + "a" * 64 + "/", "http://host/" + "a" * 3000, "http://%31%32%37.0.0.1/",
    "http://[fe80::1%25eth0]/", "jar:http://host!/", "HTTP:/host/", "http://host^/", "http://[host]/",
    "http://host[::1]/", "http://[::1]host/", "http://[v1.host]/", "http://host:000080/",
]  # fmt: skip

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
    "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.88.99.1",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1", "fec0::1", "fc00::1",
    "fd00:ec2::254", "ff02::1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1",
    "100::1", "3fff::1",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED_URLS)
def test_what_is_no_plain_http_url_is_refused(url: str) -> None:
    """Programs disagree about such spellings, and the disagreement is the way in."""
    with pytest.raises(Unprocessable) as caught:
        parse(url)
    assert caught.value.code == "url_rejected"


@pytest.mark.parametrize("address", PRIVATE)
def test_no_address_of_ours_is_public(address: str) -> None:
    """Whatever it is wrapped in."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_the_open_internet_is_public(address: str) -> None:
    """A guard that refuses everything is no use."""
    assert is_public(ipaddress.ip_address(address))


class Answers(Fetcher):
    """A name server that says what the test wants, and counts how often it is asked."""

    def __init__(self, addresses: list[str], rules: FetchRules) -> None:
        super().__init__(rules)
        self.addresses, self.asked = addresses, 0

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.addresses


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["8.8.8.8", "::1"], []])
async def test_every_address_of_a_name_must_be_public(addresses: list[str]) -> None:
    """One public address among private ones is the trick, not an excuse."""
    with pytest.raises(Unprocessable):
        await Answers(addresses, FetchRules()).check("http://films.example/a.mp4")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "169.254.169.254", "[::ffff:7f00:1]", "localhost", "localhost."]
)
async def test_plain_addresses_and_local_names_are_refused(host: str) -> None:
    """The usual suspects, through the real name server."""
    with pytest.raises(Unprocessable):
        await Fetcher().check(f"http://{host}/")


async def test_other_ports_are_refused() -> None:
    """A port scanner is not what this is for."""
    with pytest.raises(Unprocessable):
        await Answers(["8.8.8.8"], FetchRules()).check("http://films.example:22/")


async def test_our_own_addresses_are_refused_even_when_they_are_public() -> None:
    """A gateway on the open internet must not be made to call itself."""
    rules = FetchRules(refuse=("8.8.8.8/32",), allow=("films.example",))
    with pytest.raises(Unprocessable):
        await Answers(["8.8.8.8"], rules).check("http://films.example/")


async def test_a_list_of_hosts_shuts_out_all_others() -> None:
    """For operators who know where their films come from."""
    fetcher = Answers(["8.8.8.8"], FetchRules(only=("films.example",)))
    assert (await fetcher.check("http://films.example/")).addresses == ("8.8.8.8",)
    with pytest.raises(Unprocessable):
        await fetcher.check("http://other.example/")


@pytest.mark.parametrize("host", ["films.example", "films.example.", "FILMS.example"])
async def test_our_own_names_are_refused_however_they_are_written(host: str) -> None:
    """A name of the gateway may lead to a proxy in front of it, whose address is not its own."""
    with pytest.raises(Unprocessable):
        await Answers(["8.8.8.8"], FetchRules(refuse=("films.example",))).check(f"http://{host}/")


def test_an_address_of_this_machine_is_known_as_such() -> None:
    """Without being told: interfaces come and go."""
    assert is_ours(ipaddress.ip_address("127.0.0.1"))
    assert not is_ours(ipaddress.ip_address("8.8.8.8"))


async def test_a_name_server_that_hangs_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are shared with the disk and the database; strangers' names must not take them all."""
    free = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_options: free.wait() and [])
    fetcher = Fetcher(FetchRules(connect_s=0.05))
    checks = [fetcher.check(f"http://{n}.films.example/") for n in range(100)]
    refused = await asyncio.gather(*checks, return_exceptions=True)
    assert {type(one) for one in refused} == {Unprocessable}
    async with asyncio.timeout(5):
        assert await asyncio.to_thread(lambda: "done") == "done"
    free.set()


class Site:
    """A server on the loopback that answers raw bytes, and keeps what it was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, bytes | Callable[[asyncio.StreamWriter], object]] = {}
        self.heads: list[str] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            reply = self.replies[head.split(" ")[1]]
            if callable(reply):
                await reply(writer)  # type: ignore[misc]
            else:
                writer.write(reply)
                await writer.drain()
        writer.close()

    def url(self, path: str, host: str = "films.example") -> str:
        return f"http://{host}:{self.port}{path}"

    def fetcher(self, **rules: object) -> Answers:
        given = {"ports": frozenset({self.port}), "allow": ("films.example",), "idle_s": 0.3, **rules}
        return Answers(["127.0.0.1"], FetchRules(**given))  # type: ignore[arg-type]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    yield site
    server.close()
    for writer in site.writers:
        writer.transport.abort()
    await asyncio.sleep(0.01)


def plain(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def get(fetcher: Fetcher, url: str, limit: int = 1 << 20) -> bytes:
    return b"".join([piece async for piece in fetcher.fetch(url, limit)])


async def test_the_address_that_was_checked_is_dialled_under_the_original_name(site: Site) -> None:
    """Asking the name server twice would let it answer twice."""
    site.replies["/film?x=1"] = plain(b"film")
    fetcher = site.fetcher()
    assert await get(fetcher, site.url("/film?x=1#part")) == b"film"
    assert fetcher.asked == 1
    assert f"Host: films.example:{site.port}\r\n" in site.heads[0]
    assert "Authorization" not in site.heads[0]


async def test_chunks_and_bodies_without_length_are_read(site: Site) -> None:
    """Servers answer in three ways."""
    site.replies["/a"] = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n"
    )
    site.replies["/b"] = b"HTTP/1.0 200 OK\r\n\r\nabcde"
    assert await get(site.fetcher(), site.url("/a")) == b"abcde"
    assert await get(site.fetcher(), site.url("/b")) == b"abcde"


async def test_a_redirect_is_checked_like_the_first_address(site: Site) -> None:
    """From the open internet to the machine's own services is one redirect."""
    site.replies["/in"] = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n"
    site.replies["/file"] = b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"
    site.replies["/good"] = b"HTTP/1.1 307 Go\r\nLocation: /film\r\n\r\n"
    site.replies["/film"] = plain(b"film")
    for path in ("/in", "/file"):
        with pytest.raises(Unprocessable, match="URL"):
            await get(site.fetcher(), site.url(path))
    assert await get(site.fetcher(), site.url("/good")) == b"film"


async def test_redirects_end(site: Site) -> None:
    """A circle would go round for ever."""
    site.replies["/"] = b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"
    with pytest.raises(Unprocessable, match="redirects"):
        await get(site.fetcher(), site.url("/"))
    assert len(site.heads) == 4


async def test_size_is_bounded_whatever_the_server_claims(site: Site) -> None:
    """An honest length, a missing one, and chunks that never end."""

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    site.replies["/honest"] = plain(bytes(5000))
    site.replies["/endless"] = endless
    for path in ("/honest", "/endless"):
        with pytest.raises(TooLarge):
            await get(site.fetcher(), site.url(path), 1000)


async def test_a_server_that_dawdles_is_left(site: Site) -> None:
    """One byte a second would hold a connection for a lifetime."""

    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1)

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(40):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    site.replies.update({"/silent": silent, "/drip": drip})
    for path in ("/silent", "/drip"):
        with pytest.raises(GroundswellError, match="URL"):
            await get(site.fetcher(), site.url(path))


@pytest.mark.parametrize(
    "reply",
    [
        b"<html>hello</html>\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 70_000,
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\n\r\n",
        b"",
    ],
)
async def test_a_bad_answer_is_one_clear_error(site: Site, reply: bytes) -> None:
    """Never half a film, and never an error that nobody mapped."""
    site.replies["/"] = reply
    with pytest.raises(GroundswellError):
        await get(site.fetcher(), site.url("/"))


async def test_a_server_that_may_recover_is_worth_another_try(site: Site) -> None:
    """The job's task is tried again for these, and not for a 404."""
    site.replies["/busy"] = b"HTTP/1.1 503 Busy\r\n\r\n"
    site.replies["/none"] = b"HTTP/1.1 404 Not Found\r\n\r\n"
    with pytest.raises(UpstreamError):
        await get(site.fetcher(), site.url("/busy"))
    with pytest.raises(Unprocessable):
        await get(site.fetcher(), site.url("/none"))
