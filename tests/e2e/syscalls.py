"""What processes asked of the kernel, as strace wrote it down: files, sockets, programs.

`strace` follows a process and all that it starts. A thread, or a child before its `exec`, counts as its
parent's program.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Whatever names a file or leads out of the process. Reads and writes are left out: there are millions.
_CALLS = (
    "open", "openat", "openat2", "creat", "execve", "execveat", "rename", "renameat", "renameat2", "unlink",
    "unlinkat", "rmdir", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat", "truncate", "chmod",
    "fchmodat", "chown", "fchownat", "mknod", "mknodat", "mount", "chroot", "socket", "socketpair", "connect",
    "bind", "ptrace", "io_uring_setup", "open_by_handle_at", "memfd_create", "clone", "clone3", "fork",
    "vfork",
)  # fmt: skip
_LINE = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?)(?:<(.*?)>)?(?: .*)?\Z")
_PLACE = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_STARTS = frozenset(("clone", "clone3", "fork", "vfork"))
_UNFINISHED = " <unfinished ...>"
_ENDS_S = 30.0


@dataclass(frozen=True)
class Call:
    """One system call; ``paths`` are the files that it names, as whole paths."""

    name: str
    paths: tuple[str, ...]
    line: str


@dataclass
class Ran:
    """What one program did in one process and its threads, from its `exec` on."""

    command: str
    calls: list[Call] = field(default_factory=list)


def strace(trace: Path) -> list[str]:
    """The start of a command line; what is seen goes to the file ``trace``. The command stays a child of
    whoever starts it."""
    wanted = ",".join(f"?{name}" for name in _CALLS)
    return ["strace", "-D", "-f", "--seccomp-bpf", "-y", "-s", "4096", "-e", f"trace={wanted}",
            "-o", str(trace)]  # fmt: skip


def programs(trace: Path) -> list[Ran]:
    """Every program that was run under ``strace(trace)``. Waits until all of them have ended."""
    ran: list[Ran] = []
    owner: dict[str, Ran | None] = {}
    early: dict[str, list[Call]] = {}  # A child may be seen before its parent returns.
    for pid, line in _whole_lines(_ended(trace)):
        match = _LINE.match(line)
        if line.startswith("+++"):
            owner.pop(pid, None)
            early.pop(pid, None)
        elif match is None:
            continue
        elif match[1] in _STARTS:
            if int(match[3]) > 0:
                owner[match[3]] = parent = owner.get(pid)
                waiting = early.pop(match[3], [])
                if parent is not None:
                    parent.calls += waiting
        elif match[1] == "execve" and match[3] == "0":
            early.pop(pid, None)
            ran.append(Ran(line))
            owner[pid] = ran[-1]
        else:
            program = owner.get(pid)
            (early.setdefault(pid, []) if program is None else program.calls).append(_call(match))
    return ran


def _ended(trace: Path) -> list[str]:
    deadline = time.monotonic() + _ENDS_S
    while True:
        lines = trace.read_text(errors="replace").splitlines()
        alive = set[str]()
        for line in lines:
            pid, _, text = line.partition(" ")
            (alive.discard if text.lstrip().startswith("+++") else alive.add)(pid)
        if lines and not alive:
            return lines
        assert time.monotonic() < deadline, f"strace did not see the end of {sorted(alive)}"
        time.sleep(0.1)


def _whole_lines(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Calls that another process interrupted on the page, put together again."""
    begun: dict[str, str] = {}
    for line in lines:
        pid, _, text = line.partition(" ")
        text = text.lstrip()
        if text.endswith(_UNFINISHED):
            begun[pid] = text.removesuffix(_UNFINISHED)
        elif match := _RESUMED.match(text):
            yield pid, begun.pop(pid, "") + text[match.end() :]
        else:
            yield pid, text


def _call(match: re.Match[str]) -> Call:
    name, arguments, _, opened = match.groups()
    if name.startswith("open") and opened:
        return Call(name, (_plain(opened),), match[0])
    return Call(name, tuple(_paths(name, arguments)), match[0])


def _paths(name: str, arguments: str) -> Iterator[str]:
    if name in ("socket", "socketpair", "connect", "bind", "ptrace", "io_uring_setup", "memfd_create"):
        return
    if name.startswith("exec"):
        arguments = arguments.split(", [")[0]
    places = _PLACE.findall(arguments)
    for number, text in enumerate(_STRING.findall(arguments)):
        base = places[min(number, len(places) - 1)] if places else "/"
        yield os.path.normpath(os.path.join(base, _plain(text)))


def _plain(text: str) -> str:
    """strace's escapes undone."""
    return text.encode().decode("unicode_escape", "replace") if "\\" in text else text
