"""Fuzzing what reads bytes of strangers: by hypothesis from pieces that matter, by atheris along branches.

`make fuzz` gives each target a minute. What breaks one is written to `found/`, and stays there as a test.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from targets import TARGETS, atheris

HERE = Path(__file__).parent
CHUNK = (
    b'data: {"id":"a","object":"chat.completion.chunk","created":1,"model":"x","choices":[{"index":0,"delta":'
)
HEAD = b"HTTP/1.1 200 OK\r\n"
JSON = [
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b'"',
    b'"a"',
    b"0",
    b"-1",
    b"1e9",
    b"null",
    b"true",
    b"\\",
    b"\\u0061",
    b" ",
]
PIECES: dict[str, list[bytes]] = {
    "events": [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"data: a", b"data:", b":", b"x" * 500],
    "chunk_stream": [
        CHUNK, b'{"content":"a"}', b"0", b"[]", b'""', b"null", b"{}", b"}]}", b"\n\n", b"\r\r", b"data: ",
        b"data: [DONE]\n\n", b'"usage":{"prompt_tokens":1}', b'{"choices":', b'{"model":"\\q"}',
        b': "model":"\\x"\n', b'"model":"x",', *JSON,
    ],
    "whole_answer": [
        b'{"choices":[', b'{"index":0}', b"]}", b'"data":[', b'"usage":{}', b'"timings":1', *JSON,
    ],
    "engine_response": [
        HEAD, b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"\r\n", b"5\r\n", b"0\r\n\r\n",
        b"HTTP/1.1 100 C\r\n\r\n", b"HTTP/1.1 500 E\r\n", b"HTTP/1.1 204 N\r\n\r\n", CHUNK,
        b'{"content":"a"}', b'"finish_reason":"stop"', b"}]}", b"data: [DONE]", b"\n\n", b"error: ",
        b'{"error":{"message":"x","code":400}}', b'"usage":{"prompt_tokens":-1}', b"Connection: close\r\n",
        *JSON,
    ],
    "engine_refusal": [
        b'{"error":', b'{"message":', b'"code":', b'"context"', b"http://10.0.0.1", b"nan", b"1e999", *JSON,
    ],
    "media_head": [
        b"ftyp", b"\0\0\0\x18", b"\x1a\x45\xdf\xa3", b"RIFF", b"AVI ", b"OggS", b"FLV\x01", b"\x47",
        b"\0" * 187,
    ],
    "segment": [
        b"\0\0\0\x08", b"\0\0\0\x00", b"\0\0\0\x01", b"\xff" * 8, b"moov", b"trak", b"mdia", b"mdhd",
        b"moof", b"traf", b"tfhd", b"tfdt", b"trun", b"mdat", b"avcC", b"avc1", b"stsd", b"stbl", b"minf",
        b"\0" * 12, b"\x7f\xff\xff\xff",
    ],
    "url": [
        b"http://", b"https://", b"HTTP:", b"/", b"//", b"@", b":", b"80", b"127.1", b"0x7f000001",
        b"2130706433", b"[::1]", b"[::ffff:7f00:1]", b"[64:ff9b::a9fe:a9fe]", b"169.254.169.254",
        b"8.8.8.8", b"%31", b"\\", b"#", b"?", b".", "①".encode(), b"[", b"]", b"0177.0.0.1",
    ],
    "request_body": [
        b'{"model":"m","messages":[{"role":"user","content":"x"}]', b'"model" :', b'"prompt":', b'"input":',
        b'"n":', *JSON,
    ],
    "form": [
        b"--x", b"--", b"\r\n", b"Content-Disposition: form-data; ", b'name="file"', b'name="ladder"',
        b"filename=a", b"[1]", b"\r\n\r\n", b"--x--\r\n", b":", b"\0",
    ],
    "link": [
        b"\x01\x01\x00\x01\x00", b"\x01\x02", b"\x01\x04", b"\x01\x05", b"\x01\x06", b"\x01\x00\x00\x00",
        b"\x84\xa7work_id\xa1w\xa7attempt\x01", b"\xa6report", b"\xa7node_id", b"\x92\x90\x90", b"\xc0",
        b"\xff" * 8, b'[{"work_id":"w","attempt":1,', b'"kind":"chat"', *JSON,
    ],
}  # fmt: skip


def test_every_target_has_its_pieces() -> None:
    """One that is left out is fuzzed with noise, which ends at the first check."""
    assert PIECES.keys() == TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_break_what_reads_them(name: str, pytestconfig: pytest.Config) -> None:
    """The first branch is the client's fault or the engine's, never an exception that nobody expected."""
    count = max(200, pytestconfig.getoption("--inputs") // 15)
    pieces = st.lists(st.sampled_from(PIECES[name]) | st.binary(max_size=6), max_size=24).map(b"".join)

    @with_seed(pytestconfig.getoption("--seed"))
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=pieces)
    @example(data=b"")
    def read(data: bytes) -> None:
        TARGETS[name](data)

    read()


@pytest.mark.parametrize("path", sorted((HERE / "found").glob("*-*")), ids=lambda path: path.name)
def test_what_once_broke_something_does_so_no_more(path: Path) -> None:
    """Each was found by a fuzzer, and mended."""
    TARGETS[path.name.partition("-")[0]](path.read_bytes())


@pytest.mark.skipif(atheris is None, reason="there is no atheris for this Python")
@pytest.mark.parametrize("name", TARGETS)
def test_no_branch_leads_to_a_defect(name: str, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """atheris sees which bytes reach new code and goes on from them."""
    for number, piece in enumerate(PIECES[name]):
        (tmp_path / str(number)).write_bytes(b"\x05" + piece)
    (tmp_path / "all").write_bytes(b"\x05" + b"".join(PIECES[name]))
    seconds, seed = pytestconfig.getoption("--fuzz-seconds"), pytestconfig.getoption("--seed")
    options = [
        f"-max_total_time={seconds}", f"-seed={seed}",
        "-max_len=4096", "-timeout=5", "-rss_limit_mb=2048", f"-artifact_prefix={HERE / 'found' / name}-",
    ]  # fmt: skip
    command = [sys.executable, str(HERE / "targets.py"), name, *options, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    runs = re.findall(r"Done (\d+) runs|stat::number_of_executed_units: (\d+)", done.stderr)
    print(f"\natheris {name}: {runs}")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
