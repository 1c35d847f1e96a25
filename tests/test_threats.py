"""docs/threats.md is complete, and the tests that it names exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$",
    (ROOT / "docs" / "threats.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
NODE_ID = re.compile(r"`(tests/[^`]*)`")
REASON = re.compile(r"(?:Does not apply|Not yet): .{20,}\.\Z")


@cache
def collected(path: Path) -> set[str]:
    """The functions that pytest collects from a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_threat_has_its_row() -> None:
    """The checklist has 64 inputs; one that is left out is one that nobody thinks of."""
    assert [int(number) for number, *_ in ROWS] == list(range(1, 65))


@pytest.mark.parametrize(("number", "proof"), [(row[0], row[3]) for row in ROWS])
def test_a_row_names_tests_that_exist_or_says_why_there_are_none(number: str, proof: str) -> None:
    """A promise whose test was renamed or removed is no longer one."""
    named = NODE_ID.findall(proof)
    if not named:
        assert REASON.match(proof), f"row {number} has neither a test nor a reason"
        return
    assert re.fullmatch(r"`[^`]+`(?:, `[^`]+`)*", proof), f"row {number} mixes tests with other text"
    for node_id in named:
        path, _, name = node_id.partition("::")
        assert (ROOT / path).is_file(), f"row {number}: there is no {path}"
        assert name in collected(ROOT / path), f"row {number}: there is no {node_id}"
