"""Files that strangers might upload: made by code, none of them longer than it has to be.

``hostile_files`` gives name and content of each. Most are no video at all, or a video that lies; a few are
odd and still good, and must come through. What is written in them leads to ``CANARY``, which nobody may open.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import random
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from clips import clip, png
from groundswell.media.encode import ffmpeg_path

CANARY = "/etc/hostname"
PLAYLIST = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{CANARY}\n#EXT-X-ENDLIST\n"
MUTATIONS, SEED = 2, 20261125  # Of each of the clips.

# --- boxes of MP4, elements of Matroska ---


def box(kind: str, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind.encode("latin-1") + body


def element(number: int, body: bytes) -> bytes:
    """One EBML element, its length in eight bytes."""
    return number.to_bytes((number.bit_length() + 7) // 8) + struct.pack(">Q", len(body) | 1 << 56) + body


def find(data: bytes, kind: str, after: int = 0) -> tuple[int, int]:
    """Where a box of this kind begins and ends, by its name; good enough for files of our own."""
    at = data.index(kind.encode("latin-1"), after) - 4
    return at, at + struct.unpack_from(">I", data, at)[0]


PARENTS = ("moov", "trak", "mdia", "minf", "stbl", "stsd", "dinf", "edts")


def replaced(data: bytes, kind: str, new: bytes) -> bytes:
    """The first box of a kind replaced, and the lengths of all boxes around it set right."""
    start, end = find(data, kind)
    out = bytearray(data[:start] + new + data[end:])
    grown = len(new) - (end - start)
    for parent in PARENTS:
        at = -1
        while (at := data.find(parent.encode(), at + 1)) > 0:
            begin, stop = at - 4, at - 4 + struct.unpack_from(">I", data, at - 4)[0]
            if begin < start and stop >= end:
                struct.pack_into(">I", out, begin, stop - begin + grown)
    return bytes(out)


def full(kind: str, body: bytes, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", flags), body)


@functools.cache
def film() -> bytes:
    """A small good film with its index at the end, so that data do not move when the index grows."""
    return clip("plain.mp4").read_bytes()


def patched(kind: str, offset: int, value: bytes) -> bytes:
    """The film with some bytes of one box written over; ``offset`` counts from after its name."""
    at = find(film(), kind)[0] + 8 + offset
    return film()[:at] + value + film()[at + len(value) :]


def made(*arguments: str, name: str = "x.mp4") -> bytes:
    """What ffmpeg makes of these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-y", *arguments, str(path)]
        subprocess.run(command, check=True)
        return path.read_bytes()


def source(size: str = "160x120", rate: str = "25", seconds: str = "2") -> list[str]:
    return ["-f", "lavfi", "-i", f"testsrc2=s={size}:r={rate}:d={seconds}"]


X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-threads", "1"]

# --- texts that make other programs open other files ---


def scripts() -> Iterator[tuple[str, bytes]]:
    inner = [
        f"file://{CANARY}", CANARY, "http://127.0.0.1/x.ts", f"concat:{CANARY}|{CANARY}",
        f"subfile,,start,0,end,9,,:{CANARY}", f"crypto:{CANARY}", "data:video/mp2t;base64,R0AA",
        "unix:/run/x.sock", "tcp://127.0.0.1:80", "gopher://127.0.0.1/", "amqp://127.0.0.1/",
        "async:" + CANARY, "cache:" + CANARY,
        "tee:/tmp/x", "pipe:0", "fd:3", "../source", "source", "in.bin", "%2e%2e/source",
    ]  # fmt: skip
    for number, target in enumerate(inner):
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n"
        yield f"playlist {number}: {target}", text.encode()
    master = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n"
    yield "master playlist with a file", master.format(f"file://{CANARY}").encode()
    yield "master playlist of itself", master.format("source").encode() * 3
    yield "100,000 variants", b"#EXTM3U\n" + b"#EXT-X-STREAM-INF:BANDWIDTH=1\nsource\n" * 100_000
    yield (
        "playlist with a key",
        PLAYLIST.replace(
            "#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="file://{CANARY}"\n#EXT-X-MAP:URI="{CANARY}"\n#EXTINF'
        ).encode(),
    )
    for name, mark in (
        ("BOM", b"\xef\xbb\xbf"),
        ("blanks", b" \n\n\t"),
        ("zeros", bytes(16)),
        ("ID3", b"ID3\4\0"),
    ):
        yield f"playlist behind {name}", mark + PLAYLIST.encode()
    text = PLAYLIST.encode()
    yield "playlist behind a head of MP4", box("ftyp", b"isom\0\0\0\0isom") + text * 20
    yield "playlist that begins as MP4", b"#EXTftyp" + text[4:] * 20
    yield (
        "playlist that begins as a TS",
        (b"G" + text).ljust(188, b"\n") + (b"G" + text).ljust(188, b"\n") * 20,
    )
    yield "playlist that begins as Matroska", b"\x1a\x45\xdf\xa3" + text * 20
    yield "playlist that begins as AVI", b"RIFF\0\0\0\0AVI " + text * 20
    yield "playlist that begins as OGG", b"OggS" + text * 20
    yield "playlist that begins as FLV", b"FLV\1" + text * 20
    yield "playlist in UTF-16", PLAYLIST.encode("utf-16")
    yield "ffconcat", f"ffconcat version 1.0\nfile {CANARY}\n".encode()
    yield "ffconcat that says it is safe", f"ffconcat version 1.0\noption safe 0\nfile '{CANARY}'\n".encode()
    yield "ffconcat of itself", b"ffconcat version 1.0\n" + b"file source\n" * 5000
    yield "ffconcat of a URL", b"ffconcat version 1.0\nfile http://127.0.0.1/\n"
    yield "ffmetadata", b";FFMETADATA1\ntitle=x\n[CHAPTER]\nSTART=0\nEND=9\n"
    yield (
        "session description",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    )
    for name in ("file:///etc/", "http://127.0.0.1/"):
        yield (
            f"DASH manifest, {name}",
            (
                f'<?xml version="1.0"?><MPD><Period><BaseURL>{name}</BaseURL>'
                '<AdaptationSet mimeType="video/mp4"><Representation id="0"><SegmentList>'
                '<SegmentURL media="hostname"/></SegmentList></Representation>'
                "</AdaptationSet></Period></MPD>"
            ).encode(),
        )
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{CANARY}">]>'
    yield "XML with an entity", f'<?xml version="1.0"?>{entity}<MPD><BaseURL>&e;</BaseURL></MPD>'.encode()
    bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    yield "XML bomb", f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "x">{bomb}]><MPD>&e9;</MPD>'.encode()
    yield (
        "vector picture",
        f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{CANARY}"/></svg>'.encode(),
    )
    yield "smil", f'<smil><body><video src="file://{CANARY}"/></body></smil>'.encode()
    yield (
        "smooth streaming",
        b'<SmoothStreamingMedia><StreamIndex Url="file:///etc/hostname"/></SmoothStreamingMedia>',
    )
    yield "pls", f"[playlist]\nFile1={CANARY}\nNumberOfEntries=1\n".encode()
    yield "asx", f'<asx version="3"><entry><ref href="{CANARY}"/></entry></asx>'.encode()
    yield "AviSynth script", f'AviSource("{CANARY}")\n'.encode()
    yield "VapourSynth script", b"import vapoursynth\nopen('/etc/hostname')\n"
    yield "lavfi graph", f"movie={CANARY}[out0]".encode()
    yield "image pattern", b"%d.png\n/etc/%s\n*.jpg\n"
    yield "rtsp address", b"RTSPtext\nrtsp://127.0.0.1/x\n"
    yield "tee and options", b"-i /etc/hostname -f null -\n"
    yield "subtitles with attachments", b"[Script Info]\n[Fonts]\nfontname: ../../x.ttf\n\x00\x00\n[Events]\n"
    yield "srt", b"1\n00:00:00,000 --> 00:00:01,000\n<img src=file:///etc/hostname>\n"
    yield "webvtt", b"WEBVTT\nREGION\nid:x\n\n00:00.000 --> 00:01.000\nx\n"


# --- what is no video, pictures, archives ---


def jpeg(width: int, height: int) -> bytes:
    head = struct.pack(">BHHB", 8, height, width, 3) + b"\1\x22\0\2\x11\1\3\x11\1"
    return (
        b"\xff\xd8\xff\xc0"
        + struct.pack(">H", 2 + len(head))
        + head
        + b"\xff\xda\0\x08\1\1\0\0\x3f\0"
        + bytes(99)
    )


def zipped(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def others() -> Iterator[tuple[str, bytes]]:
    zeros = bytes(4 << 20)
    yield "empty", b""
    yield "one byte", b"\0"
    yield "zeros", bytes(100_000)
    yield "noise", random.Random(SEED).randbytes(100_000)
    yield "huge PNG", png(16_000, 16_000)
    yield (
        "PNG that claims 2^31 columns",
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 2**31 - 1, 9, 8, 6, 0, 0, 0),
    )
    yield "JPEG of 65535 squared", jpeg(65535, 65535)
    yield "GIF of 65535 squared", b"GIF89a\xff\xff\xff\xff\xf7\0\0" + bytes(800)
    yield "JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + box("ftyp", b"jp2 \0\0\0\0jp2 ") + bytes(99)
    yield (
        "AVIF",
        box("ftyp", b"avif\0\0\0\0avifmif1")
        + box("meta", bytes(4), box("hdlr", bytes(8), b"pict", bytes(13))),
    )
    yield (
        "HEIC grid",
        box("ftyp", b"heic\0\0\0\0mif1heic") + box("meta", bytes(4), box("iprp", b"ispe" + b"\xff" * 12)),
    )
    yield "TIFF", b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 500
    yield "OpenEXR", b"v/1\1\2\0\0\0" + b"\xff" * 500
    yield "PSD", b"8BPS\0\1" + b"\xff" * 500
    yield "WebP", b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 100
    yield "WAV", b"RIFF\xff\xff\xff\x7fWAVEfmt \x10\0\0\0" + b"\xff" * 100
    yield "MP3", (b"\xff\xfb\x90\0" + bytes(413)) * 10
    yield "FLAC", b"fLaC\x80\xff\xff\xff" + b"\xff" * 200
    yield "raw H.264", made(*source(), *X264, name="x.h264")
    yield "Y4M", b"YUV4MPEG2 W99999 H99999 F25:1\nFRAME\n" + bytes(999)
    yield "IVF", b"DKIF\0\0 \0VP80\xff\xff\xff\xff" + bytes(99)
    yield "program stream", made(*source(), "-c:v", "mpeg2video", name="x.mpg")
    yield "ASF", bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + b"\xff" * 500
    yield "RealMedia", b".RMF\0\0\0\x12" + b"\xff" * 500
    yield "Flash", b"FWS\x09\xff\xff\xff\xff" + bytes(500)
    yield "gzip bomb", gzip.compress(zeros)
    yield "gzipped film", gzip.compress(film())
    yield "bzip2 bomb", bz2.compress(zeros)
    yield "xz bomb", lzma.compress(zeros)
    yield "zip bomb", zipped("film.mp4", zeros)
    yield "zip with a way out", zipped("../../../../tmp/film.mp4", film())
    yield "tar", b"../../x".ljust(100, b"\0") + b"0000644\0".ljust(157, b"0") + b"ustar\0" + bytes(999)
    yield "program", Path("/bin/true").read_bytes()
    yield "shell script", b"#!/bin/sh\ntouch /tmp/x\n"
    yield "PDF", b"%PDF-1.7\n1 0 obj<</URI(file:///etc/hostname)>>endobj\n"
    yield "HTML", b"<html><video src=file:///etc/hostname></html>"
    yield "pickle", b"cos\nsystem\n(S'touch /tmp/x'\ntR."


# --- MP4 that lies ---


def movies() -> Iterator[tuple[str, bytes]]:
    size, moov = len(film()), find(film(), "moov")
    for share in (1, 20, 60, 95):
        yield f"film, {share} % of it", film()[: size * share // 100]
    yield "film without its data", film()[moov[0] :]
    yield "film with its index alone behind ftyp", box("ftyp", b"isom\0\0\0\0") + film()[moov[0] : moov[1]]
    yield "index behind 64 MB of nothing", _moved(64 << 20)
    yield "sizes beyond the file", struct.pack(">I4s", 0xFFFFFFFF, b"moov") + b"\xff" * 600
    yield "a box of size 0 in the index", patched("mvhd", -8, bytes(4))
    yield (
        "a box of 2^63",
        box("ftyp", b"isom\0\0\0\0") + struct.pack(">I4sQ", 1, b"mdat", 2**63 - 1) + bytes(99),
    )
    yield "10,000 nested boxes", box("ftyp", b"isom\0\0\0\0") + _nested(10_000)
    yield "a compressed index, a bomb", box("ftyp", b"isom\0\0\0\0") + _compressed(bytes(64 << 20), 400 << 20)
    yield "a compressed index in itself", box("ftyp", b"isom\0\0\0\0") + _compressed(_compressed(b"", 99), 99)
    for count in (2 * 10**7, 10**9, 2**32 - 1):
        yield (
            f"{count} frames of no size",
            replaced(film(), "stsz", full("stsz", struct.pack(">II", 0, 0))[:-4] + struct.pack(">I", count)),
        )
        yield (
            f"{count} frames of a byte",
            replaced(film(), "stsz", full("stsz", struct.pack(">II", 1, count))),
        )
    yield "the same data as 100,000 frames", repeated(100_000, 512)
    yield "the same data as 14,000 frames, a second apart", repeated(14_000, 15_360)
    yield "frames that last nothing", replaced(film(), "stts", full("stts", struct.pack(">III", 1, 50, 0)))
    yield (
        "frames that last 10 hours",
        replaced(film(), "stts", full("stts", struct.pack(">III", 1, 50, 12_800 * 720))),
    )
    yield (
        "frames that last for ever",
        replaced(film(), "stts", full("stts", struct.pack(">III", 1, 50, 2**31 - 1))),
    )
    yield (
        "frames in steps of 2^32 - 1",
        replaced(film(), "stts", full("stts", struct.pack(">III", 1, 50, 2**32 - 1))),
    )
    yield (
        "one frame that lasts 3 hours",
        replaced(film(), "stts", full("stts", struct.pack(">IIIII", 2, 49, 512, 101, 12_800 * 10_800))),
    )
    yield (
        "offsets far before the start",
        replaced(film(), "ctts", full("ctts", struct.pack(">IIi", 1, 200, -(2**30)), 1 << 24)),
    )
    yield (
        "an index of times with 2^28 entries",
        replaced(film(), "stts", full("stts", struct.pack(">I", 2**28) + bytes(80))),
    )
    for scale in (0, 1, 2**31 - 1, 2**32 - 1):
        yield f"{scale} ticks a second", patched("mdhd", 12, struct.pack(">I", scale))
    yield "a display of 65535 squared", patched("tkhd", 76, struct.pack(">II", 65535 << 16, 65535 << 16))
    yield "a picture of 65535 squared", patched("avc1", 24, struct.pack(">HH", 65535, 65535))
    yield "a picture of no size", patched("avc1", 24, bytes(4))
    yield "a matrix of noise", patched("tkhd", 40, random.Random(1).randbytes(36))
    yield "pixels 60,000 times as wide", _wide_pixels()
    yield "parameter sets of noise", patched("avcC", 8, b"\xff" * 24)
    yield "another codec's name", film().replace(b"avc1", b"jp2k").replace(b"avcC", b"free")
    yield "a codec that nobody knows", film().replace(b"avc1", b"zzzz")
    for kind, target in (("url ", CANARY), ("url ", "http://127.0.0.1/"), ("alis", CANARY), ("rsrc", CANARY)):
        yield f"data in another file, {kind}{target}", _elsewhere(kind, target)
    yield "an edit list of 50,000 entries", _edits(struct.pack(">III", 100, 0, 1 << 16) * 50_000, 50_000)
    yield "an edit list before the start", _edits(struct.pack(">Iii", 5000, -(2**30), 1 << 16), 1)
    yield "an edit list at 2^31 times the speed", _edits(struct.pack(">III", 5000, 0, 2**31), 1)
    yield "200 tracks", _tracks(200)
    yield (
        "200,000 tags",
        film() + box("moov", box("udta", box("meta", bytes(4), box("ilst", *[_tag()] * 200_000)))),
    )
    yield "50,000 empty fragments", film() + box("moof", box("mfhd", bytes(8))) * 50_000
    yield (
        "a fragment of 2^31 frames",
        film()
        + box(
            "moof", box("traf", full("tfhd", struct.pack(">I", 1)), full("trun", struct.pack(">I", 2**31)))
        ),
    )
    yield "film with a zip behind it", film() + zipped("x", bytes(1000))
    yield "film with a playlist in front", box("free", PLAYLIST.encode()) + film()
    yield "film with a web page inside", film() + box("free", b"<script>alert(1)</script>" * 100)


def _moved(gap: int) -> bytes:
    """Nothing between the head and the index, and the data after that: offsets are from the old file."""
    start, end = find(film(), "moov")
    return film()[:start] + box("free", bytes(gap)) + film()[start:end]


def _nested(depth: int) -> bytes:
    sizes = [struct.pack(">I4s", 8 * (depth - n), b"moov" if n % 2 == 0 else b"trak") for n in range(depth)]
    return b"".join(sizes)


def _compressed(content: bytes, claimed: int) -> bytes:
    packed = zlib.compress(content)
    return box("moov", box("cmov", box("dcom", b"zlib"), box("cmvd", struct.pack(">I", claimed), packed)))


def repeated(count: int, step: int) -> bytes:
    """Every frame is the first picture's data: a small file that is very long to read."""
    picture = struct.unpack_from(">I", film(), find(film(), "stsz")[0] + 20)[0]
    chunk = struct.unpack_from(">I", film(), find(film(), "stco")[0] + 16)[0]
    out = replaced(film(), "stsz", full("stsz", struct.pack(">II", picture, count)))
    out = replaced(out, "stsc", full("stsc", struct.pack(">IIII", 1, 1, 1, 1)))
    out = replaced(out, "stts", full("stts", struct.pack(">III", 1, count, step)))
    out = replaced(out, "stss", box("free", b""))
    out = replaced(out, "ctts", box("free", b""))
    out = out.replace(b"edts", b"free")
    return replaced(out, "stco", full("stco", struct.pack(">I", count) + struct.pack(">I", chunk) * count))


def _wide_pixels() -> bytes:
    pasp = box("pasp", struct.pack(">II", 60_000, 1))
    return (
        replaced(film(), "pasp", pasp)
        if b"pasp" in film()
        else patched("tkhd", 76, struct.pack(">I", 65535 << 16))
    )


def _elsewhere(kind: str, target: str) -> bytes:
    name = target.encode()
    if kind == "alis":
        body = (
            bytes(10 + 28 + 12)
            + name[:60].ljust(64, b"\0")
            + bytes(36)
            + struct.pack(">HH", 2, len(name))
            + name
            + b"\xff\xff"
        )
    else:
        body = name + b"\0"
    return replaced(film(), "dref", full("dref", struct.pack(">I", 1) + full(kind, body)))


def _edits(entries: bytes, count: int) -> bytes:
    return replaced(film(), "elst", full("elst", struct.pack(">I", count) + entries))


def _tracks(count: int) -> bytes:
    start, end = find(film(), "moov")
    trak = find(film(), "trak")
    body = film()[start + 8 : end] + film()[trak[0] : trak[1]] * count
    return film()[:start] + box("moov", body)


def _tag() -> bytes:
    return box("\xa9nam", box("data", struct.pack(">II", 1, 0), b"x" * 20))


# --- Matroska, AVI, FLV, OGG, MPEG-TS that lie ---

EBML = element(0x1A45DFA3, element(0x4282, b"matroska"))


def mkv(*parts: bytes) -> bytes:
    return EBML + element(0x18538067, b"".join(parts))


def track(number: int, codec: bytes = b"V_MPEG4/ISO/AVC", more: bytes = b"", width: int = 160) -> bytes:
    video = element(0xE0, element(0xB0, struct.pack(">I", width)) + element(0xBA, struct.pack(">I", width)))
    return element(
        0xAE, element(0xD7, bytes([number % 250 + 1])) + element(0x73C5, struct.pack(">I", number + 1))
        + element(0x83, b"\1") + element(0x86, codec) + video + more,
    )  # fmt: skip


def containers() -> Iterator[tuple[str, bytes]]:
    good_mkv = made(*source(), *X264, name="x.mkv")
    yield "matroska of noise", b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 8
    yield "matroska with 500 tracks", mkv(element(0x1654AE6B, b"".join(track(n) for n in range(500))))
    yield "matroska of 2^32 columns", mkv(element(0x1654AE6B, track(0, width=2**32 - 1)))
    zeros = zlib.compress(bytes(200 << 20))
    packing = element(0x6D80, element(0x6240, element(0x5034, element(0x4254, b"\0"))))
    block = element(0x1F43B675, element(0xE7, b"\0") + element(0xA3, b"\x81\0\0\x80" + zeros))
    yield "matroska with a packed bomb", mkv(element(0x1654AE6B, track(0, b"V_MJPEG", packing)), block)
    yield "matroska of 10,000 nested tags", mkv(element(0x1254C367, element(0x7373, _tags(10_000))))
    font = element(
        0x61A7,
        element(0x466E, b"../../../tmp/x.ttf") + element(0x4660, b"font/ttf") + element(0x465C, bytes(999)),
    )
    yield "matroska with a font that wants out", good_mkv + element(0x1941A469, font)
    yield (
        "matroska, no time",
        mkv(element(0x1549A966, element(0x2AD7B1, b"\0")), element(0x1654AE6B, track(0))),
    )
    yield "matroska without end", EBML + b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" + bytes(999)
    yield "matroska, half of it", good_mkv[: len(good_mkv) // 2]
    avi = made(*source(), "-c:v", "mjpeg", name="x.avi")
    yield "AVI with a playlist as subtitles", _subtitled(avi)
    yield (
        "AVI that claims 2^32 frames",
        avi.replace(b"avih", b"avih", 1)[:48] + b"\xff\xff\xff\xff" + avi[52:],
    )
    yield "AVI of no rate", _avi_rate(avi, 0, 0)
    yield "AVI of 10^9 pictures a second", _avi_rate(avi, 1, 10**9)
    yield "AVI, half of it", avi[: len(avi) // 2]
    flv = made(*source(), *X264, "-pix_fmt", "yuv420p", name="x.flv")
    yield "FLV, half of it", flv[: len(flv) // 2]
    yield "FLV of noise", b"FLV\1\5\0\0\0\x09\0\0\0\0" + random.Random(2).randbytes(5000)
    yield (
        "FLV with a redirect",
        b"FLV\1\5\0\0\0\x09\0\0\0\0\x12"
        + b"\0\0\x30"
        + bytes(7)
        + b"\2\0\nonMetaData\3\0\3url\2\0\x10http://127.0.0.1"
        + bytes(99),
    )
    yield "OGG of noise", b"OggS\0\2" + random.Random(3).randbytes(5000)
    yield "OGG of pages without end", (b"OggS\0\0" + bytes(20) + b"\xff" + b"\xff" * 255) * 50
    yield "transport stream of noise", (b"\x47" + b"\x1f" * 187) * 200
    ts = made(*source(), *X264, "-g", "10", name="x.ts")
    yield "transport stream, every other packet", b"".join(ts[n : n + 188] for n in range(0, len(ts), 376))
    yield "transport stream of 4,000 programs", _programs(4000)
    yield "transport stream, twice", ts + ts


def _tags(depth: int) -> bytes:
    body = element(0x45A3, b"x")
    head = b"\x67\xc8\x01" + b"\xff" * 7  # Of a length that is not known.
    return head * depth + body


def _subtitled(avi: bytes) -> bytes:
    text = PLAYLIST.encode()
    gab2 = b"GAB2\0\2\0" + struct.pack("<I", 2) + b"x\0" + b"\4\0" + struct.pack("<I", len(text)) + text
    return avi.replace(b"movi", b"movi01tx" + struct.pack("<I", len(gab2)) + gab2, 1)


def _avi_rate(avi: bytes, scale: int, rate: int) -> bytes:
    at = avi.index(b"strh") + 8 + 20
    return avi[:at] + struct.pack("<II", scale, rate) + avi[at + 8 :]


def _programs(count: int) -> bytes:
    """Tables that announce thousands of streams."""
    out = []
    for number in range(count):
        entry = b"".join(
            struct.pack(">BHH", 0x1B, 0xE000 | (0x200 + number + n) & 0x1FFF, 0xF000) for n in range(30)
        )
        body = struct.pack(">HBBBHH", number, 0xC1, 0, 0, 0xE100, 0xF000) + entry
        section = b"\2" + struct.pack(">H", 0xB000 | len(body) + 4) + body
        section += struct.pack(">I", zlib.crc32(section))
        out.append((b"\x47\x40\x20\x10\0" + section).ljust(188, b"\xff")[:188])
    pat = b"\0" + struct.pack(">H", 0xB00D) + b"\0\1\xc1\0\0" + struct.pack(">HH", 1, 0xE020)
    return (b"\x47\x40\0\x10\0" + pat + bytes(4)).ljust(188, b"\xff") + b"".join(out)


# --- real codecs, odd films ---


def films() -> Iterator[tuple[str, bytes]]:
    yield "1,000 pictures a second", made(*source(rate="1000", seconds="1"), *X264)
    yield (
        "a picture every 5 seconds for 5 hours",
        made(*source("32x32", "0.2", "18000"), "-c:v", "mjpeg", name="x.mkv"),
    )
    yield "no key frame but the first, 40 minutes", made(*source("32x32", "1", "2400"), *X264, "-g", "99999")
    yield (
        "15 hours in a few kilobytes",
        made(*source("32x32", "0.01", "54000"), *X264, "-g", "1", name="x.mkv"),
    )
    yield (
        "negative times",
        made(*source(), *X264, "-output_ts_offset", "-5", "-avoid_negative_ts", "disabled", name="x.mkv"),
    )
    yield "times beyond 33 bits", made(*source(), *X264, "-output_ts_offset", "95000", name="x.mkv")
    yield "a size that changes with each picture", _changing()
    yield "pictures of 8192 x 4048", made(*source("8192x4048", "5", "0.4"), "-c:v", "mjpeg", name="x.avi")
    yield "H.264 of 7680 x 4320", made(*source("7680x4320", "2", "1"), *X264)
    yield "H.264 of 16000 x 2000", made(*source("16000x2000", "1", "1"), *X264)
    yield "pictures of 65500 x 500", made(*source("65500x500", "1", "1"), "-c:v", "mjpeg", name="x.avi")
    yield "a picture of 8 x 8", made(*source("16x8"), *X264)
    yield "30 streams", made(*source(), *X264, *["-map", "0:v"] * 30, name="x.mkv")
    yield "PNG as video", made(*source(), "-c:v", "png", name="x.mov")
    yield "raw video", made(*source("64x64", seconds="0.2"), "-c:v", "rawvideo", name="x.avi")
    yield "sound alone", made("-f", "lavfi", "-i", "sine", "-t", "1", "-c:a", "aac", name="x.mp4")
    yield (
        "sound of 8 channels at 192 kHz",
        made(
            *source(),
            "-f",
            "lavfi",
            "-i",
            "anoisesrc=r=192000:d=2",
            "-ac",
            "8",
            *X264,
            "-c:a",
            "pcm_s16le",
            name="x.mkv",
        ),
    )
    yield (
        "sound that nobody knows",
        made(*source(), "-f", "lavfi", "-i", "sine=d=2", *X264, "-c:a", "wmav2", name="x.mkv"),
    )
    yield (
        "16 bits in four planes",
        made(*source("64x64", seconds="0.5"), "-c:v", "ffv1", "-pix_fmt", "yuva444p16le", name="x.mkv"),
    )
    yield (
        "pictures in two halves",
        made(*source(), *X264, "-flags", "+ilme+ildct", "-x264opts", "tff=1", "-pix_fmt", "yuv420p"),
    )


def _changing() -> bytes:
    """MJPEG in an AVI, every picture with a size of its own."""
    parts = [
        made(*source(size, "25", "0.04"), "-frames:v", "1", "-c:v", "mjpeg", name="x.mjpeg")
        for size in ("160x120", "64x48", "1920x1080", "32x400")
    ]
    joined = b"".join(parts[n % 4] for n in range(40))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.mjpeg"
        path.write_bytes(joined)
        return made("-f", "mjpeg", "-i", str(path), "-c:v", "copy", name="x.avi")


# --- what chance makes of good clips ---


def mutations() -> Iterator[tuple[str, bytes]]:
    rng = random.Random(SEED)
    for name in ("plain.mp4", "opengop.mp4", "vfr.mp4", "ntsc.mkv", "late.ts", "vp9.webm"):
        for number in range(MUTATIONS):
            yield f"{name}, mutation {number}", mutated(rng, clip(name).read_bytes())


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A few places changed: bits, numbers, lengths, pieces lost, doubled or moved."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 5, 20))):
        # Heads and indexes are at the ends; what is in between is mostly pictures.
        at = rng.choice(
            (rng.randrange(min(2000, len(out))), rng.randrange(len(out)), len(out) - 1 - rng.randrange(3000))
        )
        change: Callable[[], None] = rng.choice((_flip, _number, _drop, _double, _swap))  # type: ignore[arg-type]
        change(rng, out, at)  # type: ignore[call-arg]
    return bytes(out)


def _flip(rng: random.Random, out: bytearray, at: int) -> None:
    out[at] ^= 1 << rng.randrange(8)


def _number(rng: random.Random, out: bytearray, at: int) -> None:
    value = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.randrange(1 << 32)))
    out[at : at + 4] = struct.pack(">I", value)


def _drop(rng: random.Random, out: bytearray, at: int) -> None:
    del out[at : at + rng.choice((1, 4, 188, 1000))]


def _double(rng: random.Random, out: bytearray, at: int) -> None:
    out[at:at] = out[at : at + rng.choice((4, 188, 1000))]


def _swap(rng: random.Random, out: bytearray, at: int) -> None:
    other = rng.randrange(max(1, len(out) - 64))
    out[at : at + 64], out[other : other + 64] = out[other : other + 64], out[at : at + 64]


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """All of them, each once."""
    for family in (scripts, others, movies, containers, films, mutations):
        yield from family()
