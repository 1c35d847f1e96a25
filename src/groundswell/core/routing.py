"""Which seat a work should have: candidates best first, at a cost that does not grow with the fleet.

Theory of operation. A *pool* holds the seats of one (kind, model). A tree of sums over their free slots, of
eight branches (few levels, so that a change costs little), draws a seat with a probability in proportion to
what it has free, in O(log n), and never one that has nothing. A
decision looks at a handful of candidates: the owners of two prompt blocks, the seat that was last sent most
of this prompt, three drawn by capacity, and the engine whose slot has just become free. Whoever fits gets a
cost in seconds, the one currency of all decisions:

    our own backlog there / rate  +  predicted time to the first token, with what is cached left out
                                  +  what a stall would cost, if the engine failed its last work a moment ago

The backlog counts what we dispatched the moment we did; what other gateways have there comes from reports.
Prediction and rate are learned (``core.estimate``). A cache owner therefore wins exactly as long as the
prefill that it saves outweighs its longer queue; there is no threshold. Equal costs are ordered by the
event's draw. It is well mixed when it comes here, so that one multiplication for each further number is
enough.

A work with constraints may find that none of the candidates fits. Then 64 seats are looked at from a drawn
position on, which is every seat of a small fleet; in a large one the work waits, and is tried again on each
engine that gets a free slot or reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from groundswell.core.affinity import Memory, Owners
from groundswell.core.chance import GOLDEN, MASK
from groundswell.core.continuation import can_continue
from groundswell.core.estimate import Estimator, Prediction
from groundswell.core.membership import Engine, Identity, Seat
from groundswell.model.node import Capability
from groundswell.model.value import value
from groundswell.model.work import Kind, Work

SAMPLES: Final = 3
BRANCH_BITS: Final = 3
SCAN_MAX: Final = 64
COLD_S: Final = 30.0  # A model that must be loaded first is worth avoiding for about as long as that takes.
OVERLONG_S: Final = 1000.0  # Prompt estimates are rough, so a short context is a last resort, not a bar.
DOUBT_COST_S: Final = 2.0  # Even odds of another stall, which costs up to 4 s.
OUTPUT_EXPECTED: Final = 256  # Tokens expected of a work that names no limit, and the most counted otherwise
OTHERS_TOKENS: Final = 256  # What a slot that another gateway holds is taken to have left.


class Need(NamedTuple):
    """What a seat must have for a work. Works with equal needs are equal to routing, but for their size."""

    kind: Kind
    model: str
    features: frozenset[str] = frozenset()
    price_max: int | None = None
    trust_min: int = 0
    region: str | None = None
    fingerprint: str = ""
    exact: bool = False

    @property
    def pool(self) -> PoolKey:
        return (self.kind, self.model)

    @property
    def constrained(self) -> bool:
        """Whether it asks for more than the pool's seats all have."""
        return bool(
            self.features
            or self.price_max is not None
            or self.trust_min
            or self.region is not None
            or self.fingerprint
        )


PoolKey = tuple[Kind, str]
Stand = tuple[int, int]  # Of a seat: 1 and the engine's slots if it is available, or nothing of both.
NOWHERE: Final[Stand] = (0, 0)


@value
class Ask:
    """One decision: what is needed, how big it is, and the chance to decide with."""

    need: Need
    prompt_tokens: int
    output_tokens: int
    pixels: int
    prefix: tuple[int, ...]
    draw: int
    hint: Engine | None = None
    avoid: frozenset[Identity] = frozenset()


def need_of(work: Work, fingerprint: str = "") -> Need:
    """What this work needs; with a fingerprint, to go on with what was already sent."""
    return Need(
        work.kind,
        work.model,
        work.features,
        work.price_max,
        work.trust_min,
        work.region,
        fingerprint,
        work.needs_exact_resume and bool(fingerprint),
    )


def output_expected(work: Work, emitted: int = 0) -> int:
    """Tokens of output to plan with: what the client allows, but no more than usual answers have."""
    if work.kind is Kind.EMBEDDING:
        return 1
    most = work.output_tokens_max
    if not most or most - emitted >= OUTPUT_EXPECTED:
        return OUTPUT_EXPECTED
    return max(1, most - emitted)


def fits(seat: Seat, need: Need) -> bool:
    """Whether the seat satisfies every constraint, whatever runs on it now."""
    capability, node = seat.capability, seat.engine.node
    if need.features and not need.features <= capability.features:
        return False
    if need.price_max is not None and asked_nano(capability, need.kind) > need.price_max:
        return False
    if need.trust_min > node.trust or (need.region is not None and need.region != node.region):
        return False
    return not need.fingerprint or can_continue(capability, need.fingerprint, need.exact)


def _fitting(seats: list[Seat], need: Need, avoid: frozenset[Identity]) -> list[Seat]:
    """Those that satisfy every constraint and are not to be avoided."""
    if not avoid and not need.constrained:
        return seats
    return [one for one in seats if one.engine.identity not in avoid and fits(one, need)]


def asked_nano(capability: Capability, kind: Kind) -> int:
    """The price that a ceiling is compared with, nano-dollars per million: pixels, or the dearer token."""
    price = capability.price
    return price.pixel_nano if kind is Kind.TRANSCODE else max(price.input_nano, price.output_nano)


class Pool:
    """The seats of one (kind, model), drawn in proportion to their free slots."""

    def __init__(self) -> None:
        self.seats: list[Seat | None] = []
        self.count = 0
        self.available = 0
        self.slots = 0
        self.owners = Owners()
        self._at: dict[Seat, int] = {}
        self._holes: list[int] = []
        self._sums: list[list[int]] = [[0]]  # Free slots of each seat, of each eight, and so on: of all.

    @property
    def free(self) -> int:
        """Free slots of all seats; seats of one engine share its slots and are each counted."""
        return self._sums[-1][0]

    def add(self, seat: Seat, stand: Stand) -> int:
        """A seat joins, at the place that is handed back, with nothing free yet."""
        if self._holes:
            at = self._holes.pop()
            self.seats[at] = seat
        else:
            at = len(self.seats)
            self.seats.append(seat)
            self._grow(at)
        self._at[seat] = at
        self.count += 1
        self.stand(NOWHERE, stand)
        self.owners.add(seat)
        return at

    def remove(self, seat: Seat, stood: Stand) -> int:
        """A seat leaves the place that is handed back, for good."""
        at = self._at.pop(seat)
        self.weigh(at, 0)
        self.stand(stood, NOWHERE)
        self.seats[at] = None
        self._holes.append(at)
        self.count -= 1
        self.owners.remove(seat)
        return at

    def stand(self, stood: Stand, stands: Stand) -> None:
        """One of the seats stood so before, and stands so now."""
        self.available += stands[0] - stood[0]
        self.slots += stands[1] - stood[1]

    def weigh(self, at: int, free: int) -> None:
        """The seat at this place has so many slots free."""
        change = free - self._sums[0][at]
        if change:
            for sums in self._sums:
                sums[at] += change
                at >>= BRANCH_BITS

    def free_on(self, seat: Seat) -> int:
        """The free slots of this seat; 0 when it is no seat of the pool."""
        at = self._at.get(seat)
        return 0 if at is None else self._sums[0][at]

    def sample(self, draw: int) -> Seat | None:
        """One seat by its share of the free slots; None when nothing is free."""
        total = self._sums[-1][0]
        if not total:
            return None
        left = draw * total >> 64
        at = 0
        for sums in self._sums[-2::-1]:
            at <<= BRANCH_BITS
            while left >= (weight := sums[at]):
                left -= weight
                at += 1
        return self.seats[at]

    def scan(self, draw: int) -> Iterable[Seat]:
        """Some of the seats, from a drawn position on; every one of a small fleet."""
        size = len(self.seats)
        start = draw % size if size else 0
        for step in range(min(SCAN_MAX, size)):
            seat = self.seats[(start + step) % size]
            if seat is not None:
                yield seat

    def room(self, draw: int) -> list[Seat]:
        """Those seats of a scan that have a free slot."""
        return [one for one in self.scan(draw) if self.free_on(one)]

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._at)

    def _grow(self, at: int) -> None:
        """Room for one more seat, at the end."""
        for sums in self._sums:
            if at < len(sums):
                return
            sums.append(0)
            at >>= BRANCH_BITS
        top = self._sums[-1]
        if len(top) > 1:
            self._sums.append([sum(top)])


class Places:
    """Where the seats of one engine are: in which pools, at which place, and how it stood there last."""

    __slots__ = ("pools", "stood")

    def __init__(self) -> None:
        self.pools: list[tuple[Pool, int]] = []
        self.stood: Stand = NOWHERE


def pool_keys(engine: Engine) -> list[PoolKey]:
    """The pools that the engine's seats are in, in an order that is the same in every process."""
    return [(kind, model) for model, seat in engine.seats.items() for kind in sorted(seat.capability.kinds)]


class Router:
    """The pools, and the policy that ranks their seats."""

    def __init__(self, estimator: Estimator | None = None) -> None:
        self.estimator = estimator or Estimator()
        self.memory = Memory()
        self.pools: dict[PoolKey, Pool] = {}
        self._places: dict[Engine, Places] = {}

    def add(self, seat: Seat) -> None:
        """A seat joins the pool of each kind that its capability does; its engine must be refreshed then."""
        places = self._places.setdefault(seat.engine, Places())
        for kind in sorted(seat.capability.kinds):
            pool = self.pools.setdefault((kind, seat.capability.model), Pool())
            places.pools.append((pool, pool.add(seat, places.stood)))

    def remove(self, seat: Seat) -> None:
        """A seat is gone; a pool without seats goes with its last one."""
        places = self._places[seat.engine]
        for kind in sorted(seat.capability.kinds):
            pool = self.pools[(kind, seat.capability.model)]
            places.pools.remove((pool, pool.remove(seat, places.stood)))
            if not pool.count:
                del self.pools[(kind, seat.capability.model)]
        if not places.pools:
            del self._places[seat.engine]

    def refresh(self, engine: Engine) -> None:
        """The engine's free slots or standing changed."""
        places = self._places.get(engine)
        if places is None:
            return
        stands = (1, engine.slots) if engine.available else NOWHERE
        if stands != places.stood:
            for pool, _ in places.pools:
                pool.stand(places.stood, stands)
            places.stood = stands
        free = engine.free
        for pool, at in places.pools:
            pool.weigh(at, free)

    def pools_of(self, engine: Engine) -> list[Pool]:
        """Every pool that a seat of this engine is in."""
        return [self.pools[key] for key in pool_keys(engine)]

    def rank(self, ask: Ask) -> list[Seat]:
        """Seats that can take this work now, best first; empty when it has to wait."""
        pool = self.pools.get(ask.need.pool)
        if pool is None or not pool.free:
            return []
        alone = pool.count == 1  # Then there is nothing to draw.
        depths = {} if alone else self.memory.depths(ask.prefix)
        looked = pool.room(ask.draw) if alone else self._candidates(pool, ask, depths)
        found = _fitting(looked, ask.need, ask.avoid)
        if not found and not alone:
            found = _fitting(pool.room(ask.draw), ask.need, ask.avoid)
        if not found and ask.avoid and not self._other(pool, ask):
            found = _fitting(pool.room(ask.draw), ask.need, frozenset())
        if len(found) < 2:
            return found
        draw = ask.draw
        costs = [
            (self.cost_s(one, ask, depths.get(one, 0)), (draw ^ one.salt) * GOLDEN & MASK, at)
            for at, one in enumerate(found)
        ]
        costs.sort()
        return [found[at] for _, _, at in costs]

    def cost_s(self, seat: Seat, ask: Ask, cached_blocks: int = 0) -> float:
        """What this work would cost on this seat, in seconds."""
        engine = seat.engine
        doubt_s = 0.0 if engine.doubted_s is None else DOUBT_COST_S
        if ask.need.kind is Kind.TRANSCODE:
            pixels = engine.backlog / max(1, engine.slots) + ask.pixels
            return self.estimator.predict_transcode_s(seat.key, int(pixels)) + doubt_s
        prompt = ask.prompt_tokens
        if cached_blocks:
            blocks = max(1, len(ask.prefix))
            uncached = prompt - prompt * min(cached_blocks, blocks) // blocks
        else:
            uncached = prompt
        ttft_s, _, rate_tokens_s = self.predict(seat, uncached)
        backlog = engine.backlog + engine.others * OTHERS_TOKENS
        cost_s = backlog / rate_tokens_s + ttft_s + doubt_s
        if prompt > seat.capability.context_tokens:
            cost_s += OVERLONG_S
        return cost_s

    def predict(self, seat: Seat, prompt_tokens: int) -> Prediction:
        """What a work with this prompt would see if it were sent to this seat now."""
        engine, capability = seat.engine, seat.capability
        seen = self.estimator.predict(
            seat.key,
            capability.profile,
            prompt_tokens,
            engine.prefill_tokens,
            len(engine.held) + engine.others,
        )
        return seen if capability.warm else seen._replace(ttft_s=seen.ttft_s + COLD_S)

    def _candidates(self, pool: Pool, ask: Ask, depths: dict[Seat, int]) -> list[Seat]:
        """A few seats with room, each once, in an order that does not depend on the process."""
        looked: list[Seat | None] = []
        prefix = ask.prefix
        if prefix:
            looked += [pool.owners.of(prefix[0]), pool.owners.of(prefix[len(prefix) // 2])]
        if depths:
            looked.append(max(depths, key=depths.__getitem__))
        if ask.hint is not None:
            looked.append(ask.hint.seats.get(ask.need.model))
        found = {one: None for one in looked if one is not None and pool.free_on(one)}
        draw = ask.draw
        for _ in range(SAMPLES):
            draw = draw * GOLDEN & MASK
            drawn = pool.sample(draw)
            if drawn is not None:
                found[drawn] = None
        return list(found)

    def _other(self, pool: Pool, ask: Ask) -> bool:
        """Whether there is a seat that fits, is well and has not failed this work, busy or not."""
        return any(
            one.engine.available and one.engine.identity not in ask.avoid and fits(one, ask.need)
            for one in pool.scan(ask.draw)
        )
