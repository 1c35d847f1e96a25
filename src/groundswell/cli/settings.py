"""Which configuration this run of the command line uses, loaded once and only when a command needs it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from groundswell.config import load

if TYPE_CHECKING:
    from groundswell.config import Config


@dataclass
class Settings:
    """``path`` is set from ``--config`` before any command runs, ``started_s`` when the process begins."""

    path: Path | None = None
    started_s: float = 0.0

    def __post_init__(self) -> None:
        self.__dict__.pop("config", None)

    @cached_property
    def config(self) -> Config:
        return load(self.path, os.environ)


settings = Settings()
