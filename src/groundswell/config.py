"""Settings: one TOML file, overridden by environment variables, every one described where it is declared.

``[gateway] port = 8787`` in the file is ``GROUNDSWELL_GATEWAY_PORT=8787`` in the environment; lists of plain
values are separated by commas there, lists of tables (``nodes``, ``engines``) come from the file only. What
nobody knows is refused with the nearest name that somebody does. ``reference`` renders the table that
docs/reference/settings.md shows.
"""

from __future__ import annotations

import difflib
import os
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from groundswell.model.errors import BadRequest
from groundswell.model.money import Price
from groundswell.model.node import NAME

ENVIRONMENT_PREFIX = "GROUNDSWELL_"
# Read by the command line as a client of a gateway, or before there is a configuration; no settings.
OTHER_VARIABLES = (
    "GROUNDSWELL_CONFIG",
    "GROUNDSWELL_API_KEY",
    "GROUNDSWELL_URL",
    "GROUNDSWELL_PROFILE",
    "GROUNDSWELL_PARENT_PID",  # Given to engine processes, so that they end with their node.
)

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Nano = Annotated[int, Meta(ge=0)]
Origin = Annotated[str, Meta(pattern=r"^(\*|https?://[^/?#\s]+)$")]
Identifier = Annotated[str, Meta(pattern=f"^{NAME}$")]


def described(text: str) -> Meta:
    return Meta(description=text)


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A table of the file."""


class Gateway(Section, frozen=True, kw_only=True):
    """The front door."""

    host: Annotated[
        str, described("Address to listen on. 127.0.0.1 is this machine only; 0.0.0.0 opens it to all.")
    ] = "127.0.0.1"
    port: Annotated[Port, described("Port to listen on; 0 takes a free one.")] = 8787
    allowed_hosts: Annotated[
        tuple[str, ...],
        described("Host names that clients may ask for, besides the address itself; `*` allows any."),
    ] = ()
    allowed_origins: Annotated[
        tuple[Origin, ...],
        described(
            "Origins of web pages that may call this gateway, such as `https://app.example`; `*` allows any."
        ),
    ] = ()
    continuation: Annotated[
        bool,
        described("Whether a stream whose engine died goes on elsewhere; otherwise it ends with an error."),
    ] = True
    drain_s: Annotated[Seconds, described("How long open requests may take to end when it stops.")] = 30.0


class Network(Section, frozen=True, kw_only=True):
    """Nodes on other machines."""

    open: Annotated[
        str,
        described(
            "Address under which other machines reach this one, `HOST` or `HOST:PORT`; empty lets none in."
        ),
    ] = ""
    port: Annotated[
        Port, described("Port that they come to, when `open` names none; 0 takes a free one.")
    ] = 4222


class Limits(Section, frozen=True, kw_only=True):
    """What a client may send, and what it may leave unread."""

    body_bytes: Annotated[Bytes, described("Largest body of a JSON request, in bytes.")] = 16 << 20
    upload_bytes: Annotated[Bytes, described("Largest upload of a file, in bytes.")] = 10 << 30
    blobs_bytes: Annotated[
        Bytes, described("Most that all uploads and results together may take, in bytes.")
    ] = 100 << 30
    blob_keep_s: Annotated[
        Seconds, described("How long uploads, and the results of jobs that ended, are kept, in seconds.")
    ] = 7 * 86_400.0
    connections: Annotated[Count, described("Most connections at a time.")] = 10_000
    stalled_s: Annotated[
        Seconds,
        described("A client that is behind is cut when it takes less than `progress_bytes` in this time."),
    ] = 30.0
    progress_bytes: Annotated[
        Bytes, described("Least that a client that is behind must take in `stalled_s` of what waits for it.")
    ] = 4 << 10
    unread_bytes: Annotated[
        Bytes, described("Most that may wait for all clients that are behind; above it the worst is cut.")
    ] = 256 << 20


class Queue(Section, frozen=True, kw_only=True):
    """What waits for capacity."""

    works: Annotated[Count, described("Most works that may wait; beyond it requests are refused.")] = 1_000
    wait_s: Annotated[Seconds, described("Longest that a request may wait to start, in seconds.")] = 60.0
    jobs: Annotated[Count, described("Most durable jobs that may be open.")] = 10_000


class Prices(Section, frozen=True, kw_only=True):
    """What work costs, in nano-dollars (10^-9 dollars) per million units."""

    input_nano: Annotated[Nano, described("Nano-dollars per million input tokens.")] = 100_000_000
    output_nano: Annotated[Nano, described("Nano-dollars per million output tokens.")] = 400_000_000
    pixel_nano: Annotated[Nano, described("Nano-dollars per million output pixels of video.")] = 150

    def price(self) -> Price:
        return Price(self.input_nano, self.output_nano, self.pixel_nano)


class LocalEngine(Section, frozen=True, kw_only=True):
    """An engine that a local node runs as a child process."""

    kind: Annotated[Literal["builtin", "emulated", "embeddings", "transcode"], described("Which engine.")]
    slots: Annotated[Count | None, described("Works at a time; unset takes what the engine says.")] = None
    model: Annotated[str, described("Only `emulated`: the name of its model; empty is `emulated`.")] = ""
    profile: Annotated[
        str, described("Only `emulated`: the GPU and model that it behaves like, such as `h100-8b`.")
    ] = ""
    speed: Annotated[
        float, Meta(gt=0), described("Only `emulated`: how many times faster than the real one it runs.")
    ] = 1.0
    prices: Annotated[Prices | None, described("What it asks; unset takes `[prices]`.")] = None


class Node(Section, frozen=True, kw_only=True):
    """A node in this process."""

    id: Annotated[Identifier, described("Its name.")]
    engines: Annotated[tuple[LocalEngine, ...], described("Its engines.")] = ()
    region: Annotated[str, described("Where it is, for requests that ask for a region.")] = ""
    trust: Annotated[int, Meta(ge=0, le=9), described("How far it is trusted, 0 to 9.")] = 1


class UrlEngine(Section, frozen=True, kw_only=True):
    """An OpenAI-compatible server that runs already."""

    id: Annotated[Identifier, described("Its name.")]
    url: Annotated[str, Meta(pattern=r"^https?://"), described("Its base URL, with or without `/v1`.")]
    key_file: Annotated[str | None, described("File that holds the key which it wants.")] = None
    aliases: Annotated[dict[str, str], described("Public model names, each with the engine's own name.")] = {}
    slots: Annotated[Count | None, described("Works at a time; unset takes what the probe finds.")] = None
    prices: Annotated[Prices | None, described("What it asks; unset takes `[prices]`.")] = None


class Video(Section, frozen=True, kw_only=True):
    """Transcoding."""

    ladder: Annotated[
        tuple[str, ...],
        described(
            "Renditions when a request names none, tallest first; those above the source are left out."
        ),
    ] = ("1080p", "720p", "480p", "360p")
    segment_s: Annotated[
        float,
        Meta(ge=1, le=30),
        described("Aim for the length of a segment, in seconds; cuts are at keyframes."),
    ] = 4.0
    pixels: Annotated[Count, described("Most pixels in a frame of the source.")] = 33_177_600
    length_s: Annotated[Seconds, described("Longest source, in seconds.")] = 4 * 3600.0
    streams: Annotated[Count, described("Most streams in a source.")] = 16
    attempts: Annotated[Count, described("How often a segment is tried before its job fails.")] = 3
    fetch: Annotated[bool, described("Whether sources may be given by URL.")] = True
    fetch_hosts: Annotated[
        tuple[str, ...], described("The only host names that sources are fetched from; empty is any.")
    ] = ()
    fetch_ports: Annotated[tuple[Port, ...], described("Ports that sources are fetched from.")] = (80, 443)
    fetch_private: Annotated[
        tuple[str, ...],
        described("Host names and networks that sources are fetched from although they are not public."),
    ] = ()
    ffmpeg: Annotated[str, described("Path of ffmpeg; empty takes the one that came with the package.")] = ""


class Telemetry(Section, frozen=True, kw_only=True):
    """What can be seen from outside."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], described("Least important kind of line to log.")
    ] = "info"
    log_format: Annotated[
        Literal["json", "text"], described("`json`: one object a line; `text`: for people.")
    ] = "json"
    otlp_endpoint: Annotated[
        str,
        described("Base URL of an OpenTelemetry collector (OTLP over HTTP); empty switches traces off."),
    ] = ""
    trace_share: Annotated[
        float, Meta(ge=0, le=1), described("Share of requests that are traced, 0 to 1.")
    ] = 1.0


_TRANSCODE = LocalEngine(kind="transcode")
DEFAULT_NODES = (
    Node(id="node-1", engines=(LocalEngine(kind="builtin"), LocalEngine(kind="embeddings"), _TRANSCODE)),
    Node(id="node-2", engines=(LocalEngine(kind="builtin"), _TRANSCODE)),
    Node(id="node-3", engines=(LocalEngine(kind="builtin"), _TRANSCODE)),
)


class Config(Section, frozen=True, kw_only=True):
    """All settings of one process."""

    data: Annotated[str, described("Folder for the database, secrets and files. Back it up as a whole.")] = (
        "~/.local/share/groundswell"
    )
    database: Annotated[
        str, described("SQLAlchemy URL of the database; empty is SQLite in the data folder.")
    ] = ""
    gateway: Gateway = Gateway()
    network: Network = Network()
    limits: Limits = Limits()
    queue: Queue = Queue()
    prices: Prices = Prices()
    video: Video = Video()
    telemetry: Telemetry = Telemetry()
    nodes: Annotated[tuple[Node, ...], described("Local nodes.")] = DEFAULT_NODES
    engines: Annotated[tuple[UrlEngine, ...], described("Engines given by URL.")] = ()

    @property
    def folder(self) -> Path:
        """The data folder as an absolute path."""
        return Path(self.data).expanduser().absolute()

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.folder / 'groundswell.db'}"


def load(path: Path | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Read the file, then the environment over it.

    Without ``path`` the file is ``GROUNDSWELL_CONFIG``, else ``~/.config/groundswell/groundswell.toml`` when
    that exists. Raises ``BadRequest`` (``invalid_setting``) that names the setting and the nearest known one.
    """
    env = os.environ if env is None else env
    values = _read(path, env)
    _refuse_unknown(values, Config, "")
    for name, (setting, kind) in _variables().items():
        if name in env:
            _put(values, setting, _from_environment(env[name], kind, name))
    _refuse_unknown_variables(env)
    return _convert(values, Config)


def reference() -> str:
    """All settings as Markdown tables, one for each section."""
    return "\n\n".join(_section_reference(Config, "", "The top of the file"))


def _read(path: Path | None, env: Mapping[str, str]) -> dict[str, Any]:
    if path is None and env.get("GROUNDSWELL_CONFIG"):
        path = Path(env["GROUNDSWELL_CONFIG"])
    if path is None:
        path = Path("~/.config/groundswell/groundswell.toml").expanduser()
        if not path.is_file():
            return {}
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise _invalid(str(path), f"The settings file {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # Not TOML, or not UTF-8.
        raise _invalid(str(path), f"The settings file {path} is not valid TOML: {error}.") from error


def _refuse_unknown(values: Mapping[str, Any], section: type[Section], prefix: str) -> None:
    known = _types(section)
    for name, value in values.items():
        if name not in known:
            raise _unknown(prefix + name, [prefix + other for other in known], "setting")
        inner = _section_in(known[name])
        if inner is None:
            continue
        for index, table in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(table, Mapping):
                place = f"{name}[{index}]" if isinstance(value, list) else name
                _refuse_unknown(table, inner, f"{prefix}{place}.")


def _refuse_unknown_variables(env: Mapping[str, str]) -> None:
    known = [*_variables(), *OTHER_VARIABLES]
    for name in env:
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known:
            raise _unknown(name, known, "environment variable")


def _unknown(name: str, known: list[str], what: str) -> BadRequest:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return _invalid(name, f"There is no {what} {name}. Did you mean {near[0]}?")


def _invalid(name: str, message: str) -> BadRequest:
    return BadRequest(message, code="invalid_setting", param=name)


def _variables() -> dict[str, tuple[tuple[str, ...], Any]]:
    """Environment variables: the setting's place and type for each name."""
    found: dict[str, tuple[tuple[str, ...], Any]] = {}
    for name, kind in _types(Config).items():
        inner = _section_in(kind)
        if inner is None:
            found[ENVIRONMENT_PREFIX + name.upper()] = ((name,), kind)
        elif typing.get_origin(_bare(kind)) is None:
            for setting, inner_kind in _types(inner).items():
                variable = f"{ENVIRONMENT_PREFIX}{name}_{setting}".upper()
                found[variable] = ((name, setting), inner_kind)
    return found


def _from_environment(text: str, kind: Any, name: str) -> Any:
    is_list = typing.get_origin(_bare(kind)) is tuple
    value: Any = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(name, f"{name} is not valid: {_first_part(error)}.") from error


def _put(values: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for name in place[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            return  # The file is wrong here, and will be refused for that.
        values = inner
    values[place[-1]] = value


def _convert(values: dict[str, Any], section: type[Config]) -> Config:
    try:
        return msgspec.convert(values, section)
    except msgspec.ValidationError as error:
        name = str(error).rpartition(" - at `$.")[2].rstrip("`")
        raise _invalid(name, f"{name} is not valid: {_first_part(error)}.") from error


def _first_part(error: Exception) -> str:
    """msgspec's words without the place, which is told in ours."""
    return str(error).partition(" - at `")[0]


def _types(section: type[Section]) -> dict[str, Any]:
    return typing.get_type_hints(section, include_extras=True)


def _bare(kind: Any) -> Any:
    """The type without its ``Annotated``."""
    return kind.__origin__ if typing.get_origin(kind) is Annotated else kind


def _section_in(kind: Any) -> type[Section] | None:
    """The section that a setting is, or is a list of, or may be."""
    bare = _bare(kind)
    for candidate in (bare, *typing.get_args(bare)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _section_reference(section: type[Section], prefix: str, title: str) -> Iterator[str]:
    rows, inner_sections = [], []
    for name, kind in _types(section).items():
        inner = _section_in(kind)
        if inner is Prices and prefix:  # Described once, at the top.
            rows.append(_row(section, name, kind, prefix))
        elif inner is not None:
            many = typing.get_origin(_bare(kind)) is tuple
            inner_sections.append((inner, prefix + name, many))
        else:
            rows.append(_row(section, name, kind, prefix))
    if rows:
        table = ["| setting | type | default | environment | meaning |", "|---|---|---|---|---|", *rows]
        yield f"## {title}\n\n{(section.__doc__ or '').strip()}\n\n" + "\n".join(table)
    for inner, name, many in inner_sections:
        yield from _section_reference(inner, f"{name}.", f"`[[{name}]]`" if many else f"`[{name}]`")


def _row(section: type[Section], name: str, kind: Any, prefix: str) -> str:
    [text] = [note.description for note in kind.__metadata__ if note.description]
    variable = next((key for key, (place, _) in _variables().items() if ".".join(place) == prefix + name), "")
    default = _default(section, name)
    shown = "unset" if default is None else f"`{_toml(default)}`"
    shown = "required" if default is msgspec.NODEFAULT else shown
    variable = f"`{variable}`" if variable else ""
    return f"| `{name}` | {_type_name(kind)} | {shown} | {variable} | {text} |"


def _default(section: type[Section], name: str) -> Any:
    """The default in a form that ``_toml`` writes."""
    [setting] = [entry for entry in msgspec.structs.fields(section) if entry.name == name]
    return setting.default if setting.default_factory is msgspec.NODEFAULT else setting.default_factory()


def _type_name(kind: Any) -> str:
    kind = _bare(kind)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "table"}
    if kind in names:
        return names[kind]
    if _section_in(kind) is Prices:
        return "table as `[prices]`"
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return f"list of {_type_name(parts[0])}"
    if origin is dict:
        return "table"
    return _type_name(next(part for part in parts if part is not type(None)))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value)
