"""Confining a process that touches media from strangers: small limits, no network, no life after its parent.

A demuxer or decoder is the likeliest place of a memory error in the whole system, so every process that
opens a user's file calls ``confine`` before it does: our own demuxing child on itself, ffmpeg between fork
and exec. NPROC is left alone on purpose: it counts all processes of the user, so on a busy machine it would
fail at random.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from dataclasses import dataclass

RESERVED_MAX = 4
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
# Loaded at import: between fork and exec there must be no search for libraries.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings of one child: memory that it can write and file size in bytes, CPU in seconds, open files."""

    memory_bytes: int
    cpu_s: int
    file_bytes: int
    files: int = 64


def confine(limits: Limits, parent_pid: int) -> bool:
    """Apply the limits to the calling process; true if it now also has no network.

    Must run while the process has one thread. ``parent_pid`` closes the gap in which the parent may have died
    before the kernel was asked to report its death.
    """
    _lower(resource.RLIMIT_DATA, limits.memory_bytes)
    # Stacks and pools of threads reserve much more than they use; this one is for systems without the other.
    _lower(resource.RLIMIT_AS, RESERVED_MAX * limits.memory_bytes)
    _lower(resource.RLIMIT_CPU, limits.cpu_s)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    _lower(resource.RLIMIT_NOFILE, limits.files)
    _lower(resource.RLIMIT_CORE, 0)
    if not die_with_parent(parent_pid) or _LIBC is None:
        return False
    if _LIBC.unshare(_CLONE_NEWNET) == 0:
        isolated = True
    else:
        # An ordinary user may have a network namespace of its own where user namespaces are allowed.
        isolated = _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return isolated


def die_with_parent(parent_pid: int) -> bool:
    """Ask the kernel to kill this process when its parent thread ends. False where it cannot (macOS)."""
    if _LIBC is None:
        return False
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
    return True


def _lower(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(which, (ceiling, ceiling))
    except (OSError, ValueError):
        # Some systems (macOS) do not know every limit; the wall timer of the parent still holds.
        return
