"""Settings come from one file and the environment; a slip of the pen is named, never ignored."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from groundswell import config
from groundswell.config import Config, load
from groundswell.model.errors import BadRequest


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "groundswell.toml"
    path.write_text(text)
    return path


def test_the_environment_goes_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    """A container changes one setting without writing a file."""
    path = write(tmp_path, 'data = "/srv"\n[gateway]\nport = 1111\nhost = "::1"\n[queue]\nwait_s = 5\n')
    env = {
        "GROUNDSWELL_GATEWAY_PORT": "2222",
        "GROUNDSWELL_VIDEO_LADDER": "720p, 360p",
        "GROUNDSWELL_VIDEO_FETCH": "false",
        "PATH": "/bin",
    }
    loaded = load(path, env)
    assert (loaded.gateway.host, loaded.gateway.port, loaded.queue.wait_s) == ("::1", 2222, 5.0)
    assert (loaded.video.ladder, loaded.video.fetch) == (("720p", "360p"), False)
    assert loaded.database_url == "sqlite:////srv/groundswell.db"
    assert loaded.limits == Config().limits


def test_nodes_and_engines_are_tables_of_the_file(tmp_path: Path) -> None:
    """Lists of tables replace the default as a whole."""
    text = """
        [[nodes]]
        id = "a"
        [[nodes.engines]]
        kind = "emulated"
        speed = 20
        prices = { output_nano = 7 }

        [[engines]]
        id = "box"
        url = "http://box:11434"
        aliases = { small = "llama3.2:1b" }
    """
    loaded = load(write(tmp_path, text), {})
    [node], [engine] = loaded.nodes, loaded.engines
    [local] = node.engines
    assert (local.kind, local.speed) == ("emulated", 20.0)
    assert local.prices is not None
    assert local.prices.price().output_nano == 7
    assert engine.aliases == {"small": "llama3.2:1b"}


@pytest.mark.parametrize(
    ("text", "name", "nearest"),
    [
        ("[gateway]\nprot = 1", "gateway.prot", "gateway.port"),
        ("[gatway]\nport = 1", "gatway", "gateway"),
        ("[[nodes]]\nid = 'a'\n[[nodes.engines]]\nkin = 'x'", "nodes[0].engines[0].kin", "kind"),
        ("[[engines]]\nuri = 'x'", "engines[0].uri", "engines[0].url"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(
    tmp_path: Path, text: str, name: str, nearest: str
) -> None:
    """A setting that is silently ignored costs its owner an afternoon."""
    with pytest.raises(BadRequest) as caught:
        load(write(tmp_path, text), {})
    assert caught.value.param == name
    assert caught.value.code == "invalid_setting"
    assert f"{nearest}?" in caught.value.message


def test_an_unknown_variable_is_refused_with_the_nearest_name() -> None:
    """The environment is as easy to mistype as the file."""
    with pytest.raises(BadRequest, match=r"Did you mean GROUNDSWELL_GATEWAY_PORT\?"):
        load(None, {"GROUNDSWELL_GATEWAY_PRT": "1"})


@pytest.mark.parametrize(
    ("text", "env", "name"),
    [
        ("[gateway]\nport = '1'", {}, "gateway.port"),
        ("[gateway]\nport = 70000", {}, "gateway.port"),
        ("gateway = 1", {"GROUNDSWELL_GATEWAY_PORT": "1"}, "gateway"),
        ("[[nodes]]\nid = 'a'\n[[nodes.engines]]\nkind = 'bultin'", {}, "nodes[0].engines[0].kind"),
        ("[[nodes]]\nid = '../a'", {}, "nodes[0].id"),
        ("[[engines]]\nid = 'a'\nurl = 'file:///x'", {}, "engines[0].url"),
        ("", {"GROUNDSWELL_GATEWAY_PORT": "x"}, "GROUNDSWELL_GATEWAY_PORT"),
        ("", {"GROUNDSWELL_TELEMETRY_TRACE_SHARE": "2"}, "GROUNDSWELL_TELEMETRY_TRACE_SHARE"),
    ],
)
def test_a_wrong_value_names_its_setting(tmp_path: Path, text: str, env: dict[str, str], name: str) -> None:
    """The message must lead to the line that is wrong."""
    with pytest.raises(BadRequest) as caught:
        load(write(tmp_path, text), env)
    assert caught.value.param == name
    assert caught.value.message.startswith(f"{name} is not valid: ")


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    """A node without an id cannot be told from another."""
    with pytest.raises(BadRequest, match="id"):
        load(write(tmp_path, "[[nodes]]\nregion = 'x'"), {})


def test_a_file_that_cannot_be_read_is_no_empty_file(tmp_path: Path) -> None:
    """Starting with defaults instead of what was asked for would be worse than not starting."""
    with pytest.raises(BadRequest, match="cannot be read"):
        load(tmp_path / "missing.toml", {})
    with pytest.raises(BadRequest, match="not valid TOML"):
        load(write(tmp_path, "a = ["), {})
    with pytest.raises(BadRequest, match="cannot be read"):
        load(None, {"GROUNDSWELL_CONFIG": str(tmp_path / "missing.toml")})


def test_every_setting_is_in_the_reference_with_its_meaning_and_default() -> None:
    """A setting that is not documented does not exist for its users."""
    text = config.reference()
    for variable, (place, _) in config._variables().items():
        row = next(line for line in text.splitlines() if f"`{variable}`" in line)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == f"`{place[-1]}`"
        assert all(cells)
        value = tomllib.loads(f"value = {cells[2].strip('`')}")["value"]
        owner = getattr(Config(), place[0]) if len(place) > 1 else Config()
        assert load(None, {variable: ",".join(map(str, value)) if isinstance(value, list) else str(value)})
        assert getattr(owner, place[-1]) in (value, tuple(value) if isinstance(value, list) else value)
