"""Values: what travels between machines and is never changed once made.

The type checker holds them frozen. At run time they are not: a frozen dataclass sets each field through
``object.__setattr__``, which makes it six times as dear to make, and one request makes two dozen of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(kind: type[T]) -> type[T]:
    """Makes a class a value: compared and hashed by its fields, with slots, frozen for the type checker."""
    return dataclass(slots=True, unsafe_hash=True)(kind)
