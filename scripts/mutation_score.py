"""Says how many mutants of the brain its tests notice, file by file, from what `mutmut run` left behind.

A mutant that runs into its time limit counts as noticed: it hangs, which nobody would overlook. The names
of the others are left in mutants/survivors.txt, one a line, and what they change in mutants/survivors.diff,
to be read one by one. Runs in mutmut's own environment.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

NOTICED = ("killed", "timeout")
UNKNOWN = "not checked"
NAMES, DIFFERENCES = Path("mutants/survivors.txt"), Path("mutants/survivors.diff")


def outcomes(path: Path) -> dict[str, str]:
    """What became of each mutant of this file."""
    data = SourceFileMutationData(path=path)
    data.load()
    return {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}


def row(name: str, count: Counter[str]) -> str:
    noticed, tried = sum(count[one] for one in NOTICED), count.total() - count[UNKNOWN]
    score = f"{100 * noticed / tried:6.1f} %" if tried else "       ?"
    return f"{name:14} {tried:7} {tried - noticed:9} {score} {count[UNKNOWN] or '':>9}"


def main() -> int:
    whole: Counter[str] = Counter()
    survivors: dict[str, Path] = {}
    print(f"{'file':14} {'mutants':>7} {'survivors':>9} {'score':>8} {'to do':>9}")
    for path in sorted(walk_mutatable_files()):
        found = outcomes(path)
        if not found:
            continue
        survivors |= {name: path for name, one in found.items() if one not in (*NOTICED, UNKNOWN)}
        whole += (count := Counter(found.values()))
        print(row(path.stem, count))
    print(row("all", whole))
    NAMES.write_text("".join(f"{name}\n" for name in survivors))
    DIFFERENCES.write_text(
        "\n".join(f"# {name}\n{get_diff_for_mutant(name, path=path)}" for name, path in survivors.items())
    )
    print(f"{len(survivors)} survivors are listed in {NAMES} and shown in {DIFFERENCES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
