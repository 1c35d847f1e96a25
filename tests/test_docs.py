"""The documentation says what the code does: what exists is described, and what is described exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
from markdown.extensions.toc import slugify

import groundswell.cli
from groundswell.config import load
from groundswell.core.contract import Reason
from groundswell.gateway import openapi, video
from groundswell.gateway.app import Operations, application
from groundswell.gateway.pipeline import Access, Guard, Pipeline
from groundswell.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "groundswell"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
FIRST_CELL = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]*)\)")
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_settings_page_is_what_the_settings_say() -> None:
    """A setting that was added, renamed or given another default shows in the page at once."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    script: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert page("reference/settings.md") == script.page(), "run: .venv/bin/python scripts/reference.py"


def test_the_settings_that_pages_show_are_taken(tmp_path: Path) -> None:
    """What is pasted into a settings file works."""
    blocks = [
        block
        for path in PAGES
        for block in re.findall(r"^```toml\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.DOTALL)
    ]
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.toml"
        file.write_text(block, encoding="utf-8")
        load(file, env={})


def test_every_make_target_that_pages_name_exists() -> None:
    """A command that is gone is not recommended."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {
        (path.name, target)
        for path in PAGES
        for target in re.findall(r"`make ([a-z-]+)", path.read_text(encoding="utf-8"))
    }
    assert ("README.md", "chaos") in named
    for name, target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name}: make {target}"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of the command line as it is typed, with its options."""
    app = typer.Typer()
    for found in pkgutil.iter_modules(groundswell.cli.__path__):
        family = importlib.import_module(f"groundswell.cli.{found.name}")
        if hasattr(family, "register"):
            family.register(app)
    yield from _walk(typer.main.get_command(app), "groundswell")


def _walk(command: Any, typed: str) -> Iterator[tuple[str, list[str]]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield typed, [name for option in command.params for name in option.opts if name.startswith("--")]
        return
    for name, one in inner.items():
        yield from _walk(one, f"{typed} {name}")


@pytest.mark.parametrize(("typed", "options"), [*commands()])
def test_every_command_is_in_the_reference_with_its_options(typed: str, options: list[str]) -> None:
    """What somebody can type is on one page."""
    lines = [line for line in page("reference/commands.md").splitlines() if line.startswith(f"| `{typed}")]
    assert lines, f"{typed} is not in docs/reference/commands.md"
    missing = [option for option in options if not any(option in line for line in lines)]
    assert not missing, f"docs/reference/commands.md does not name {missing} of {typed}"


def error_codes() -> set[str]:
    """Every code that an error can carry: ``code="..."`` in calls, default codes, the brain's reasons."""
    found = {value for name, value in vars(Reason).items() if name.isupper()}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found |= {text for one in node.keywords if one.arg == "code" for text in _texts(one.value)}
            elif isinstance(node, ast.ClassDef):
                found |= set(_default_codes(node))
    return found - {""}


def _default_codes(defined: ast.ClassDef) -> Iterator[str]:
    for statement in defined.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        for target in targets:
            names = [ast.unparse(one) for one in getattr(target, "elts", [target])]
            if "default_code" not in names:
                continue
            assert isinstance(statement, ast.Assign | ast.AnnAssign)
            assert statement.value is not None
            values = getattr(statement.value, "elts", [statement.value])
            yield from _texts(values[names.index("default_code")])


def _texts(node: ast.expr) -> list[str]:
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def test_every_error_code_is_explained_and_no_other() -> None:
    """Who meets a code finds what it means; a code that is gone does not stay in the page."""
    explained = set(FIRST_CELL.findall(page("reference/errors.md")))
    codes = error_codes()
    assert codes - explained == set(), "not in docs/reference/errors.md"
    assert explained - codes == set(), "in docs/reference/errors.md, but nothing raises it"


def test_every_metric_is_explained_and_no_other() -> None:
    """A dashboard is built from this page."""
    exported = set()
    for metric in Metrics().registry.collect():
        if metric.name.startswith("process_"):
            assert metric.name in page("reference/metrics.md")  # Each client library has these.
            continue
        exported.add(f"{metric.name}_total" if metric.type == "counter" else metric.name)
    explained = {name for name in FIRST_CELL.findall(page("reference/metrics.md")) if "groundswell_" in name}
    assert explained == exported


def routes() -> dict[str, Access]:
    """Every route of the gateway, ``METHOD /path``, and who may use it."""
    operations = Operations(list, int, lambda: (b"", ""), None, None, None)  # type: ignore[arg-type]
    files = video.routes(SimpleNamespace(jobs=None, blobs=None), None)  # type: ignore[arg-type]
    app = application(operations, Pipeline(None), files)
    assert isinstance(app, Guard)
    return {
        f"{method} {re.sub(r':[a-z]+}', '}', route.path)}": declared
        for route, declared in app._routes
        for method in (route.methods or set()) - {"HEAD"}
    }


def test_every_route_is_in_the_http_reference_and_no_other() -> None:
    """The page is the whole interface."""
    described = re.findall(r"`((?:GET|POST|DELETE|PUT|PATCH) /[^`\s]*)`", page("reference/http.md"))
    assert set(described) == routes().keys()


def test_every_route_is_in_the_openapi_description_with_its_scope_and_no_other() -> None:
    """Clients are made from it; what it calls open must be open, and nothing else."""
    described = {
        f"{method.upper()} {path}": (operation.get("x-scope"), bool(operation.get("security")))
        for path, operations in openapi.description()["paths"].items()
        for method, operation in operations.items()
    }
    scopes = {name: declared.scope for name, declared in routes().items()}
    assert described == {name: (scope and scope.value, scope is not None) for name, scope in scopes.items()}


def test_the_openapi_description_names_the_parameters_of_each_path() -> None:
    """A path with a parameter that is not described cannot be called by what is made from it."""
    for path, operations in openapi.description()["paths"].items():
        for operation in operations.values():
            named = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert named == set(re.findall(r"{([a-z_]+)}", path)), path


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """A link inside the project names a file that exists, and a heading that is in it."""
    for link in LINK.findall(CODE_BLOCK.sub("", path.read_text(encoding="utf-8"))):
        name, _, heading = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{link} leads nowhere"
        if heading:
            text = CODE_BLOCK.sub("", target.read_text(encoding="utf-8"))
            slugs = {slugify(title.replace("`", ""), "-") for title in HEADING.findall(text)}
            assert heading in slugs, f"{link}: there is no such heading"


def test_every_page_is_in_the_navigation() -> None:
    """A page that no menu leads to is not read."""
    listed = set(re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_every_dependency_has_a_reason() -> None:
    """What is installed on other people's machines is justified in one place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", page("reference/dependencies.md"), re.MULTILINE)
    reasons = {name: why.strip() for names, why in rows for name in re.findall(r"[a-z0-9-]+", names.lower())}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["otel"]]
    for requirement in wanted:
        match = re.match(r"[A-Za-z0-9-]+", requirement)
        assert match is not None
        assert len(reasons.get(match[0].lower(), "")) > 10, f"{match[0]} has no reason"


def test_the_licence_is_the_one_that_the_package_names() -> None:
    """Apache-2.0, whole, in the file and in the metadata."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
