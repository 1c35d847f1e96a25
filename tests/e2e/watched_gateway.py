"""`groundswell gateway` with a watch on its event loop, as a process of its own.

A beat asks to run every few milliseconds and notes how late it was. Being late counts only as far as this
very process was busy meanwhile: `cpu_ms` is the CPU time of the loop's own thread between two beats, `lag_ms`
the smaller of the wall time and the CPU time of all its threads, so that a thread which keeps the
interpreter's lock counts and other programs on the machine do not. What was seen is written to the file named
by WATCH_FILE, each beat that was late with its time on the monotonic clock, which all processes share.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import time
from pathlib import Path

import uvloop

BEAT_S = 0.005
LATE_MS = 50.0


class Watch:
    """The beats of one loop."""

    def __init__(self, loop: uvloop.Loop) -> None:
        self._loop = loop
        self._last = (0.0, 0.0, 0.0)
        self.beats = 0
        self.late: list[dict[str, float]] = []
        self.worst = {"cpu_ms": 0.0, "lag_ms": 0.0}

    def begin(self) -> None:
        self._last = (time.monotonic(), time.thread_time(), time.process_time())
        self._loop.call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        now = (time.monotonic(), time.thread_time(), time.process_time())
        wall_ms, cpu_ms, all_ms = (1000 * (new - old) for new, old in zip(now, self._last, strict=True))
        seen = {"cpu_ms": cpu_ms, "lag_ms": min(wall_ms, all_ms)}
        self.beats += 1
        self.worst = {name: max(self.worst[name], seen[name]) for name in seen}
        if max(seen.values()) > LATE_MS:
            self.late.append({"at_s": now[0], **seen})
        self.begin()


def main() -> None:
    """Watch from SIGUSR1 on: the start may take as long as it takes."""
    watches: list[Watch] = []
    new_event_loop = uvloop.new_event_loop

    def watched_loop() -> uvloop.Loop:
        loop = new_event_loop()
        watches.append(Watch(loop))
        loop.add_signal_handler(signal.SIGUSR1, watches[-1].begin)
        return loop

    def tell() -> None:
        seen = [{"beats": one.beats, "worst": one.worst, "late": one.late} for one in watches]
        Path(os.environ["WATCH_FILE"]).write_text(json.dumps(seen[0] if seen else None))

    uvloop.new_event_loop = watched_loop
    atexit.register(tell)
    from groundswell.__main__ import main as groundswell

    sys.exit(groundswell())


if __name__ == "__main__":
    main()
