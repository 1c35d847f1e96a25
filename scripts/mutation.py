"""Plants bugs in the brain, one at a time, and says which of them its tests do not notice.

What a bug looks like is mutmut's knowledge. They are tried here: everything is imported once, and for each
bug a child is forked in which one function gets the code with the bug. In it run the tests that reach the
function: those of its own file first, quick ones before slow ones, until one fails. That takes a tenth
of the time of a run of pytest for each bug. A bug that runs out of time or memory counts as noticed: nobody
would overlook it.

`mutants/results.tsv` holds what became of each, so that a run goes on where it was stopped. What was noticed
stands until its function changes; survivors are tried again when a test has changed. `mutants/survivors.diff`
shows the survivors, to be read one by one. Runs in an environment of its own.
"""

from __future__ import annotations
import __future__

import argparse
import difflib
import fnmatch
import gc
import hashlib
import importlib
import math
import os
import random
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

import coverage
import libcst
import pytest
from _pytest.runner import runtestprotocol
from mutmut.mutation.file_mutation import create_mutations

CORE, TESTS = Path("src/groundswell/core"), Path("tests/core")
RESULTS, SURVIVORS = Path("mutants/results.tsv"), Path("mutants/survivors.diff")
SURVIVED, SUSPECT, UNKNOWN = "survived", "suspect", "not tried"
QUICK_S = 0.3  # All meet the tests below this first, and only who survives them meets the others.
NOT_PLANTED = 9
MEMORY_BYTES = 4 << 30  # A bug that makes something grow for ever must not take the machine with it.


@dataclass(frozen=True)
class Mutant:
    """A function of the brain with one bug in it."""

    module: str  # Its file in core, without the ending.
    owner: str  # The class that the function belongs to; empty for a plain function.
    function: str
    number: int
    lines: tuple[int, int]  # Of the function in its file.
    before: str
    after: str

    @property
    def name(self) -> str:
        return ".".join(part for part in (self.module, self.owner, self.function, str(self.number)) if part)

    @property
    def digest(self) -> str:
        """Changes with the function, so that what was found out about it is no longer believed."""
        return hashlib.sha256((self.before + self.after).encode()).hexdigest()[:12]

    @property
    def difference(self) -> str:
        lines = difflib.unified_diff(self.before.split("\n"), self.after.split("\n"), n=3, lineterm="")
        return f"# {self.name} ({CORE / self.module}.py)\n" + "\n".join(list(lines)[2:]) + "\n"


def mutants_of(path: Path) -> Iterator[Mutant]:
    """All that mutmut thinks of for this file."""
    source = path.read_text()
    module, mutations, _, _ = create_mutations(str(path), source)
    places = libcst.metadata.MetadataWrapper(module, unsafe_skip_copy=True).resolve(
        libcst.metadata.PositionProvider
    )
    owners = {
        node: statement.name.value if isinstance(statement, libcst.ClassDef) else ""
        for statement in module.body
        for node in (statement.body.body if isinstance(statement, libcst.ClassDef) else [statement])
        if isinstance(node, libcst.FunctionDef)
    }
    plain = {function: code_of(function) for function in owners}
    count: Counter[libcst.FunctionDef] = Counter()
    for mutation in mutations:
        function = mutation.contained_by_top_level_function
        if function not in owners:
            continue  # A constant of a class or file: mutmut leaves them alone, too.
        count[function] += 1
        place = places[function]
        yield Mutant(
            path.stem,
            owners[function],
            function.name.value,
            count[function],
            (place.start.line, place.end.line),
            plain[function],
            code_of(function.deep_replace(mutation.original_node, mutation.mutated_node)),
        )


def code_of(function: libcst.FunctionDef) -> str:
    return libcst.Module([function]).code.strip("\n")


def plant(mutant: Mutant) -> None:
    """Give the function, which others may hold already, the code with the bug."""
    module = importlib.import_module(f"groundswell.core.{mutant.module}")
    original = _function(module, mutant)
    source = mutant.after
    if mutant.owner:
        source = f"class {mutant.owner}:\n" + "\n".join(f" {line}" for line in source.split("\n"))
    names = dict(vars(module))
    exec(compile(source, mutant.name, "exec", __future__.annotations.compiler_flag), names)  # noqa: S102
    bug = names[mutant.owner or mutant.function]
    if mutant.owner:
        bug = vars(bug)[mutant.function]
    bug = getattr(bug, "__func__", bug)
    original.__code__ = bug.__code__
    original.__defaults__, original.__kwdefaults__ = bug.__defaults__, bug.__kwdefaults__


def _function(module: ModuleType, mutant: Mutant) -> FunctionType:
    found = vars(module)[mutant.owner or mutant.function]
    if mutant.owner:
        found = vars(found)[mutant.function]
    found = getattr(found, "__func__", found)
    assert isinstance(found, FunctionType), f"{mutant.name} is not plain Python"
    return found


class Results:
    """What became of each mutant, one a line, written down as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = (file.read_bytes() for file in sorted(TESTS.glob("*.py")))
        self.tests = hashlib.sha256(b"".join(files)).hexdigest()[:12]
        self.found: dict[tuple[str, str], tuple[str, str]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            name, digest, outcome, tests = line.split("\t")
            self.found[name, digest] = outcome, tests

    def note(self, mutant: Mutant, outcome: str) -> None:
        self.found[mutant.name, mutant.digest] = outcome, self.tests
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write(f"{mutant.name}\t{mutant.digest}\t{outcome}\t{self.tests}\n")

    def of(self, mutant: Mutant) -> str:
        return self.found.get((mutant.name, mutant.digest), (UNKNOWN, ""))[0]

    def suspected(self, mutant: Mutant) -> bool:
        """Whether it has survived all of today's quick tests."""
        return self.found.get((mutant.name, mutant.digest)) == (SUSPECT, self.tests)

    def to_do(self, mutant: Mutant) -> bool:
        outcome, tests = self.found.get((mutant.name, mutant.digest), (UNKNOWN, ""))
        return outcome in (UNKNOWN, SUSPECT) or (outcome == SURVIVED and tests != self.tests)


class Trial:
    """A plugin of pytest: its tests are collected once, and run for each mutant in a child."""

    def __init__(self, mutants: list[Mutant], results: Results, jobs: int) -> None:
        self.mutants, self.results, self.jobs = mutants, results, jobs
        self.duration_s: dict[str, float] = {}
        self.reached: dict[tuple[str, int], set[str]] = defaultdict(set)

    def pytest_collection(self) -> None:
        """No test may remember what failed for another mutant; making a failure small helps nobody here."""
        from hypothesis import Phase, settings  # After pytest, which wants to import it itself.

        settings.register_profile(
            "mutants", settings.get_profile("untimed"), database=None, phases=[Phase.explicit, Phase.generate]
        )
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.measure()
        gc.freeze()  # The children share these pages as long as nobody counts in them.
        self.run([mutant for mutant in self.mutants if not self.results.suspected(mutant)], quick=True)
        suspects = [mutant for mutant in self.mutants if self.results.suspected(mutant)]
        self.run(suspects, quick=False)
        return True

    def run(self, mutants: list[Mutant], *, quick: bool) -> None:
        running: dict[int, Mutant] = {}
        for done, mutant in enumerate(mutants):
            if len(running) >= self.jobs:
                self.note(running, quick)
            if sys.stderr.isatty():
                print(f"\r{done} of {len(mutants)} ", end="", file=sys.stderr)
            running[self.fork(mutant, quick)] = mutant
        while running:
            self.note(running, quick)

    def measure(self) -> None:
        """Which tests reach which lines, and how long each takes. All must pass before a bug is planted."""
        recorder = coverage.Coverage(data_file=None, include=[f"{CORE}/*"], config_file=False)
        recorder.start()
        for name, item in self.items.items():
            recorder.switch_context(name)
            begin_s = time.process_time()
            if not passes(item):
                raise pytest.UsageError(f"{name} fails without any bug")
            self.duration_s[name] = time.process_time() - begin_s
        recorder.stop()
        data = recorder.get_data()
        for file in data.measured_files():
            for line, names in data.contexts_by_lineno(file).items():
                self.reached[Path(file).stem, line] |= {name for name in names if name}

    def tests_for(self, mutant: Mutant, quick: bool) -> list[str]:
        first, last = mutant.lines
        # The line of `def` is passed when the file is imported.
        names = {name for line in range(first + 1, last + 1) for name in self.reached[mutant.module, line]}
        names = {name for name in names if (self.duration_s[name] < QUICK_S) == quick}
        own = f"{TESTS}/test_{mutant.module}"
        return sorted(names, key=lambda name: (not name.startswith(own), self.duration_s[name]))

    def fork(self, mutant: Mutant, quick: bool) -> int:
        tests = self.tests_for(mutant, quick)
        limit_s = 4 + math.ceil(8 * sum(self.duration_s[name] for name in tests))
        if child := os.fork():
            return child
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        silence()
        status = NOT_PLANTED
        try:
            plant(mutant)
            status = 1
            status = int(not all(passes(self.items[name]) for name in tests))
        finally:
            os._exit(status)

    def note(self, running: dict[int, Mutant], quick: bool) -> None:
        child, status = os.wait()
        mutant = running.pop(child)
        code = os.waitstatus_to_exitcode(status)
        assert code != NOT_PLANTED, f"{mutant.name} could not be planted"
        missed = SUSPECT if quick else SURVIVED
        self.results.note(mutant, missed if code == 0 else "killed" if code == 1 else "timeout")


def passes(item: pytest.Item) -> bool:
    return all(report.passed or report.skipped for report in runtestprotocol(item, log=False, nextitem=None))


def silence() -> None:
    """What a test says about a bug is of no interest."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def report(mutants: list[Mutant], results: Results) -> None:
    """The score, file by file."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant in mutants:
        for row in (mutant.module, "all"):
            outcomes[row][results.of(mutant)] += 1
    print(f"{'file':14} {'tried':>7} {'survivors':>9} {'noticed':>9} {'to do':>7}")
    for row, count in sorted(outcomes.items(), key=lambda item: (item[0] == "all", item[0])):
        tried = count.total() - count[UNKNOWN]
        score = (
            f"{100 * (tried - (count[SURVIVED] + count[SUSPECT])) / tried:7.1f} %" if tried else "        ?"
        )
        print(f"{row:14} {tried:7} {(count[SURVIVED] + count[SUSPECT]):9} {score} {count[UNKNOWN] or '':>7}")
    survivors = [mutant.difference for mutant in mutants if results.of(mutant) in (SURVIVED, SUSPECT)]
    SURVIVORS.write_text("\n".join(survivors))
    print(f"{len(survivors)} survivors are shown in {SURVIVORS}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("only", nargs="*", help="names to try, such as 'lease.*'")
    options = parser.parse_args()
    sys.path.insert(0, "src")
    sys.dont_write_bytecode = True
    mutants = [mutant for path in sorted(CORE.glob("*.py")) for mutant in mutants_of(path)]
    results = Results(RESULTS)
    chosen = [
        mutant
        for mutant in mutants
        if results.to_do(mutant) and any(fnmatch.fnmatch(mutant.name, name) for name in options.only or ["*"])
    ]
    random.Random(0).shuffle(chosen)  # noqa: S311 - A run that is stopped has tried a fair sample.
    status = 0
    if chosen:
        print(f"{len(chosen)} of {len(mutants)} mutants to try")
        arguments = ["-q", "-s", "-p", "no:cacheprovider", "--hypothesis-seed=0", str(TESTS)]
        status = int(pytest.main(arguments, plugins=[Trial(chosen, results, options.jobs)]))
    report(mutants, results)
    return status


if __name__ == "__main__":
    sys.exit(main())
