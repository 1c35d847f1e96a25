"""Where the beginning of a prompt is likely to be in a cache already.

Theory of operation. Two answers. The *owner* of a block is computed: rendezvous hashing (Thaler and
Ravishankar, 1998) of the block over a pool's seats, so that all gateways agree without telling each other,
and a seat that leaves moves only what it owned. Hashing over every seat at each decision would grow with
the fleet, so blocks fall into 512 buckets and each bucket's owner is computed once and kept until the seats
change. What we *sent* is remembered: the last seat of each block, within bounds; from it comes how much of
a prompt a seat need not compute again. It is remembered in two generations: a turn, after a time or when the
younger one is full, drops the older one whole. So it follows the load and not the age of the process, and a
block that is sent costs one assignment.
"""

from __future__ import annotations

from typing import Final

from groundswell.core.chance import GOLDEN, mix
from groundswell.core.membership import Seat

BUCKETS: Final = 512
BUCKET_SHIFT: Final = 55  # Leaves the 9 best mixed bits of 64.
BLOCKS_MAX: Final = 32  # Leading blocks of a prompt that are remembered: 2,048 tokens in blocks of 64.
MEMORY_MAX: Final = 65_536  # Blocks, in two generations; 7 MB.
TURN_S: Final = 600.0  # Caches of engines and hosted services keep what nobody asks for about as long.


class Owners:
    """The owner of each bucket among the seats of one pool; computed when first asked for."""

    __slots__ = ("_owner", "_seats")

    def __init__(self) -> None:
        self._seats: dict[Seat, None] = {}
        self._owner: dict[int, tuple[int, Seat]] = {}

    def add(self, seat: Seat) -> None:
        """A new seat takes over the buckets in which it beats the owner."""
        self._seats[seat] = None
        for bucket, (score, _) in list(self._owner.items()):
            mine = mix(seat.salt ^ mix(bucket))
            if mine > score:
                self._owner[bucket] = (mine, seat)

    def remove(self, seat: Seat) -> None:
        """What it owned has no owner until somebody asks."""
        self._seats.pop(seat, None)
        for bucket in [one for one, (_, owner) in self._owner.items() if owner is seat]:
            del self._owner[bucket]

    def of(self, block: int) -> Seat | None:
        """The seat that owns this block, None when there is no seat."""
        bucket = block * GOLDEN >> BUCKET_SHIFT & BUCKETS - 1  # Fibonacci hashing; blocks are hashes already.
        found = self._owner.get(bucket)
        if found is None:
            if not self._seats:
                return None
            salt = mix(bucket)
            found = max(((mix(seat.salt ^ salt), seat) for seat in self._seats), key=lambda one: one[0])
            self._owner[bucket] = found
        return found[1]


class Memory:
    """The last seat that each block was sent to in the last one to two times ``TURN_S``."""

    __slots__ = ("_before", "_now", "_turn_s")

    def __init__(self) -> None:
        self._now: dict[int, Seat] = {}
        self._before: dict[int, Seat] = {}
        self._turn_s = 0.0

    def sent(self, now_s: float, prefix: tuple[int, ...], seat: Seat) -> None:
        """A work with this prefix goes to this seat."""
        blocks = prefix[:BLOCKS_MAX]
        if now_s >= self._turn_s or len(self._now) + len(blocks) > MEMORY_MAX // 2:
            self._before, self._now = self._now, {}
            self._turn_s = now_s + TURN_S
        for block in blocks:
            self._now[block] = seat

    def depths(self, prefix: tuple[int, ...]) -> dict[Seat, int]:
        """How many leading blocks each seat has probably cached: one sent block i was sent those before."""
        depths: dict[Seat, int] = {}
        now, before = self._now, self._before
        for index, block in enumerate(prefix[:BLOCKS_MAX], start=1):
            seat = now.get(block) or before.get(block)
            if seat is None:
                break
            depths[seat] = index
        return depths
