"""What was run and what came out: a heading, a line for each system and round, medians and ratios."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.gateway.measures import CLOSED_CONNECTIONS, OPEN_RATE, STREAMS, TOKENS, Found
from bench.gateway.systems import OURS, System
from bench.gateway.tools import ENGINES, Cores


class Column(NamedTuple):
    """A figure: its title, where it is in what was found, and how it is written."""

    title: str
    measure: str
    name: str
    form: str

    def of(self, found: Found) -> float | None:
        """The figure in one system's round, if it is there."""
        value: float | None = found.get(self.measure, {}).get(self.name)
        return value


COLUMNS = (
    Column("req/s", "requests", "value", ",.0f"),
    Column("tokens/s kept", "streams", "value", ",.0f"),
    Column("tokens/s of 10,000", "rate", "delivered", ",.0f"),
    Column("token p50 ms", "rate", "p50_ms", ".2f"),
    Column("token p99 ms", "rate", "p99_ms", ".2f"),
    Column("core used", "rate", "busy", ".0%"),
    Column("+p50 ms", "latency", "added_p50_ms", ".2f"),
    Column("+p99 ms", "latency", "added_p99_ms", ".2f"),
    Column("+TTFT ms", "streams", "added_ttft_ms", ".2f"),
    Column("RSS MB", "requests", "rss_mb", ".0f"),
    Column("RSS MB, streams", "streams", "rss_mb", ".0f"),
    Column("RSS MB, 5,000 open", "many", "rss_mb", ".0f"),
    Column("start s", "start", "value", ".2f"),
)
COMPARED = COLUMNS[:2]
FULL = 0.95  # A core that is used this much is the limit.


def heading(systems: Sequence[System], cores: Cores, options: argparse.Namespace) -> None:
    """The machine and the configurations."""
    machine = (f"{os.cpu_count()} cores", _processor(), platform.release())
    print(f"machine   {', '.join(machine)}, Python {platform.python_version()}")
    print(f"cores     the system on {cores.gateway}, backend and load on {cores.load}; {ENGINES} engines")
    print(
        f"load      {CLOSED_CONNECTIONS} connections in a closed loop; {OPEN_RATE}/s in an open one; "
        f"{STREAMS} paced streams of {TOKENS} tokens"
    )
    print(f"revision  {_revision()}; measures {', '.join(options.measures)}; {options.rounds} rounds")
    for system in systems:
        print(f"system    {system.name}: {system.what}; {system.settings}")
    print(flush=True)


def line(number: int, name: str, found: Found) -> None:
    """One system in one round."""
    parts = []
    for column in COLUMNS:
        value = column.of(found)
        if value is not None:
            parts.append(f"{column.title} {value:{column.form}}")
    if "wrong" in found:
        parts.append(f"WRONG: {found['wrong']}")
    print(f"round {number + 1}  {name:14} {'; '.join([*parts, *_notes(found)])}", flush=True)


def _notes(found: Found) -> list[str]:
    """What says whether the system was the limit, and whether each request was accounted for."""
    notes = []
    if requests := found.get("requests"):
        notes.append(f"{_limit(requests)}, bare {requests['bare']:,.0f} req/s")
    if streams := found.get("streams"):
        bare = streams["bare"]
        notes.append(f"bare token p99 {bare['p99_ms']:.1f} ms at {bare['rate']:,.0f}/s")
    if settled := found.get("settled"):
        notes.append(f"usage rows {settled['rows']:,} = requests {settled['requests']:,}")
    return notes


def _limit(found: Found) -> str:
    """Which core was full: the system's, as it should be, or that of backend and load."""
    cores = f"its core {found['busy']:.0%} busy, load's {found['load_busy']:.0%}"
    limited = found["load_busy"] >= FULL and found["busy"] < FULL
    return f"LIMITED BY BACKEND AND LOAD ({cores})" if limited else cores


def medians(rounds: Sequence[dict[str, Found]], systems: Sequence[System]) -> dict[str, dict[str, float]]:
    """Medians over the rounds, by system and column."""
    result: dict[str, dict[str, float]] = {}
    for system in systems:
        result[system.name] = {}
        for column in COLUMNS:
            values = [value for one in rounds if (value := column.of(one[system.name])) is not None]
            if values:
                result[system.name][column.title] = statistics.median(values)
    return result


def table(found: dict[str, dict[str, float]]) -> None:
    """The medians, and ours against the others'."""
    columns = [column for column in COLUMNS if any(column.title in one for one in found.values())]
    print("\n| system | " + " | ".join(column.title for column in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name, one in found.items():
        cells = [f"{one[title]:{form}}" if title in one else "" for title, _, _, form in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for title, *_ in COMPARED:
        ours = found[OURS.name].get(title)
        ratios = [
            f"{ours / one[title]:.2f}x {name}"
            for name, one in found.items()
            if ours is not None and name != OURS.name and one.get(title)
        ]
        if ratios:
            print(f"\n{title}: {', '.join(ratios)}")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((one.split(":")[1].strip() for one in lines if one.startswith("model name")), "unknown")


def _revision() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
