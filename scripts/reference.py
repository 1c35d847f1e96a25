"""Writes docs/reference/settings.md from the settings' own descriptions. tests/test_docs.py compares."""

from pathlib import Path

from groundswell.config import reference

HEAD = """# Settings

One TOML file, `~/.config/groundswell/groundswell.toml`, or the one that `--config` or `GROUNDSWELL_CONFIG`
names. Each setting can be overridden by an environment variable: `[gateway] port = 8787` is
`GROUNDSWELL_GATEWAY_PORT=8787`. An unknown setting is refused with the nearest name.

"""


def page() -> str:
    """The whole page."""
    return HEAD + reference().rstrip() + "\n"


if __name__ == "__main__":
    Path("docs/reference/settings.md").write_text(page())
