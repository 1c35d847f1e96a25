"""Ways to write a URL that leads to an address which is not public, or to no address at all.

Each one was a way in somewhere: a form that only some programs take for an address, a name that resolves
inwards, an authority that two parsers read in two ways, a scheme that opens files.
"""

from __future__ import annotations

import ipaddress

GATEWAY_V4, GATEWAY_V6 = "185.10.0.2", "2a00:1450:1::2"  # The test's gateway has these public addresses.

# What a stranger wants to reach: loopback, private networks, clouds' metadata, carriers, documentation.
TARGETS_V4 = [
    "127.0.0.1", "127.255.255.254", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255",
    "192.168.0.1",
    "169.254.169.254", "169.254.170.2", "100.100.100.200", "100.64.0.1", "168.63.129.16", "192.0.0.192",
    "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "0.0.0.0",
    "0.1.2.3",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", GATEWAY_V4,
]  # fmt: skip
TARGETS_V6 = [
    "::", "::1", "::2", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "ff0e::1", "2001:db8::1",
    "3fff::1", "100::1", "5f00::1", "2001::1", "2001:10::1", "2001:2::1", "::ffff:0:7f00:1", GATEWAY_V6,
]  # fmt: skip


def _numbers(address: str) -> list[str]:
    """The spellings of an IPv4 address that inet_aton understands, and some that it should not."""
    a, b, c, d = (int(part) for part in address.split("."))
    whole = int(ipaddress.IPv4Address(address))
    return [
        f"{whole}", f"0x{whole:08x}", f"0X{whole:X}", f"0{whole:o}", f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"0000{a:o}.{b}.{c}.{d}", f"{a}.{b * 65536 + c * 256 + d}",
        f"{a}.{b}.{c * 256 + d}", f"{a}.{b}.{c}.{d:#x}", f"{a}.{b}.{c}.{d}.", f"{a}.{b}.{c}.0{d:o}",
        f"{a:03d}.{b:03d}.{c:03d}.{d:03d}", f"{whole + (1 << 32)}", f"{a + 256}.{b}.{c}.{d}",
    ]  # fmt: skip


def _embedded(address: str) -> list[str]:
    """The IPv6 addresses that carry an IPv4 address: mapped, compatible, translated, NAT64, 6to4, Teredo."""
    value = int(ipaddress.IPv4Address(address))
    high, low = value >> 16, value & 0xFFFF
    flipped = value ^ 0xFFFFFFFF
    return [
        f"[::ffff:{address}]", f"[::ffff:{high:x}:{low:x}]", f"[0:0:0:0:0:FFFF:{high:04X}:{low:04X}]",
        f"[::{address}]", f"[::{high:x}:{low:x}]", f"[::ffff:0:{address}]", f"[64:ff9b::{address}]",
        f"[64:ff9b::{high:x}:{low:x}]", f"[64:ff9b:1::{address}]", f"[2002:{high:x}:{low:x}::]",
        f"[2002:{high:x}:{low:x}::1]", f"[2001:0:4136:e378:8000:63bf:{flipped >> 16:x}:{flipped & 0xFFFF:x}]",
        f"[fe80::5efe:{address}]",
    ]  # fmt: skip


def names_of(address: str) -> str:
    """A public name that leads to this address, by the test's own name server."""
    kind = ipaddress.ip_address(address)
    return f"{'four' if kind.version == 4 else 'six'}-{int(kind):x}.evil.example"


_SITE = "site.example"  # A public server, so that only the trick in the spelling can be refused.
_TRICKS = [
    # Schemes.
    "file:///etc/passwd", "file://localhost/etc/passwd", "FILE:///etc/passwd", "gopher://127.0.0.1/_x",
    "ftp://127.0.0.1/", "dict://127.0.0.1:11211/stat", "ldap://127.0.0.1/", "tftp://127.0.0.1/x",
    "data:video/mp4;base64,AAAA", "jar:http://127.0.0.1!/", "javascript:alert(1)", "ws://127.0.0.1/",
    "unix:///run/docker.sock", "http+unix://%2Frun%2Fdocker.sock/", "netdoc:///etc/passwd", "blob:http://a/b",
    "view-source:http://127.0.0.1/", "url:http://127.0.0.1/", "phar://x", "smb://127.0.0.1/x",
    "rtmp://127.0.0.1/",
    # Slashes, and what stands in their place.
    "http:127.0.0.1/", "http:/127.0.0.1/", "http:///127.0.0.1/", "http:\\\\127.0.0.1\\", "//127.0.0.1/",
    "\\\\127.0.0.1\\x", "http:\\/\\/127.0.0.1/", "127.0.0.1", "localhost/x", "", " ", "http", "http:",
    "http://",
    # User names, and where parsers disagree about the end of the authority.
    f"http://{_SITE}@127.0.0.1/", f"http://user:pass@{_SITE}/", f"http://127.0.0.1\\@{_SITE}/",
    f"http://{_SITE}\\@127.0.0.1/", f"http://{_SITE}:80@127.0.0.1/", f"http://@{_SITE}/",
    f"http://127.0.0.1%2f@{_SITE}/",
    f"http://{_SITE}%40127.0.0.1/", f"http://127.0.0.1%23@{_SITE}/", "http://[::1]@127.0.0.1/",
    f"http://{_SITE}[::1]/", f"http://[::1]{_SITE}/", f"http://[{_SITE}]/", "http://[127.0.0.1]/",
    "http://[::1/",
    "http://::1/", "http://[]/", "http://[v1.127.0.0.1]/", f"http://[v7.{_SITE}]/",
    # Blanks, control characters, encodings.
    " http://127.0.0.1/", "http://127.0.0.1/\r\nHost: a", "http://127.0.0.1\t/", "http://\t127.0.0.1/",
    "ht\ntp://127.0.0.1/", f"http://{_SITE}/\r\nX: y", "http://127.0.0.1\x00.site.example/",
    f"http://{_SITE}\x00/",
    "http://%31%32%37.0.0.1/", "http://127%2e0%2e0%2e1/", "http://%6cocalhost/", "http://127.0.0.1%00/",
    f"http://{_SITE}/\x7f", f"http://{_SITE} .evil.example/", "\ufeffhttp://127.0.0.1/",
    # Digits, dots and letters of other scripts, and names in punycode.
    "http://①②⑦.⓪.⓪.①/", "http://１２７.0.0.1/", "http://127。0。0。1/", "http://127．0．0．1/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "http://loc\u00adalhost/", "http://ｌｏｃａｌｈｏｓｔ/", "http://١٢٧.0.0.1/", "http://𝟏𝟐𝟕.𝟎.𝟎.𝟏/",
    "http://bücher.example/",
    "http://localhost\u200b/", "http://xn--ccaa/", "http://ß.evil.example/",
    # Zones of IPv6.
    "http://[fe80::1%lo]/", "http://[fe80::1%25lo]/", "http://[::1%251]/", "http://[::1%25]/",
    "http://[fe80::1%25inside]/",
    # Ports.
    f"http://{_SITE}:22/", f"http://{_SITE}:8787/", f"http://{_SITE}:4222/", f"http://{_SITE}:0/",
    f"http://{_SITE}:99999/",
    f"http://{_SITE}:-80/", f"http://{_SITE}:x/", f"http://{_SITE}:80:80/", f"http://{_SITE}:８０/",
    f"http://{_SITE}:000080/",
    f"http://{_SITE}:+80/", f"http://{_SITE}:8_0/", f"https://{_SITE}:6379/",
    # Names.
    "http://localhost/", "http://LOCALHOST/", "http://localhost./", "http://localhost:80/",
    "http://localhost.localdomain/",
    "http://vm/", "http://cname-localhost.evil.example/", "http://cname-inside.evil.example/",
    "http://empty.evil.example/",
    "http://nothing.evil.example/", "http://fail.evil.example/", "http://mixed.evil.example/",
    "http://both.evil.example/",
    "http://many.evil.example/", "http://mapped.evil.example/", "http://MIXED.evil.example./",
    f"http://{'a' * 64}.example/",
    f"http://{'a.' * 140}example/", "http://a..b/", "http://.evil.example/", "http://-a.evil.example/",
    "http://evil.example../",
    "http://*.evil.example/", "http://{a,b}.evil.example/", "http://$(id).evil.example/",
    "http://a`id`.evil.example/",
    # Too much.
    f"http://{_SITE}/{'a' * 3000}", f"http://{'0' * 1000}.1/", f"http://{'1' * 5000}/",
]  # fmt: skip


def spellings() -> list[str]:
    """All of them, each once, in a fixed order."""
    hosts = [*TARGETS_V4, *(f"[{address}]" for address in TARGETS_V6)]
    hosts += [names_of(address) for address in (*TARGETS_V4, *TARGETS_V6)]
    for address in ("127.0.0.1", "169.254.169.254"):
        hosts += _numbers(address) + _embedded(address)
    return list(dict.fromkeys([f"http://{host}/" for host in hosts] + _TRICKS))
