"""``python -m groundswell.sim``: run seeds, say which fail, and how to run one again with its log."""

from __future__ import annotations

import argparse
import sys

from groundswell.sim.sweep import replay, sweep


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when every check held in every run, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m groundswell.sim", description=__doc__)
    parser.add_argument("--seeds", default="0..200", help="from..to, the end not included (default 0..200)")
    parser.add_argument("--seed", type=int, help="one seed only")
    parser.add_argument("--log", action="store_true", help="print everything that happens (with --seed)")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed, options.log)
    first, _, end = options.seeds.partition("..")
    if not (first.isdecimal() and end.isdecimal()):
        parser.error("--seeds wants two numbers, as in 0..2000")
    return sweep(range(int(first), int(end)), max(1, options.jobs))


if __name__ == "__main__":
    sys.exit(main())
