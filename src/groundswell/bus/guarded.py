"""A listener's defect stays on its side of a link, as it would over a network."""

from __future__ import annotations

import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)


def guarded(listener: Callable[..., None], *arguments: object) -> None:
    """Call it; what it raises is logged."""
    try:
        listener(*arguments)
    except Exception:
        _log.exception("a listener of the link failed")
