"""Which seat a work should have: candidates best first, at a cost that does not grow with the fleet.

Theory of operation. A *pool* holds the seats of one (kind, model). A sum tree over their free slots draws a
seat with a probability in proportion to what it has free, in O(log n), and never one that has nothing. A
decision looks at a handful of candidates: the owners of two prompt blocks, the seat that was last sent most
of this prompt, three drawn by capacity, and the engine whose slot has just become free. Whoever fits gets a
cost in seconds, the one currency of all decisions:

    our own backlog there / rate  +  predicted time to the first token, with what is cached left out
                                  +  what a stall would cost, if the engine failed its last work a moment ago

The backlog counts what we dispatched the moment we did; what other gateways have there comes from reports.
Prediction and rate are learned (``core.estimate``). A cache owner therefore wins exactly as long as the
prefill that it saves outweighs its longer queue; there is no threshold. Equal costs are ordered by the
event's draw.

A work with constraints may find that none of the candidates fits. Then 64 seats are looked at from a drawn
position on, which is every seat of a small fleet; in a large one the work waits, and is tried again on each
engine that gets a free slot or reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from groundswell.core.affinity import Memory, Owners
from groundswell.core.chance import mix, unit
from groundswell.core.continuation import can_continue
from groundswell.core.estimate import Estimator
from groundswell.core.membership import Engine, Seat
from groundswell.model.node import Capability
from groundswell.model.value import value
from groundswell.model.work import Kind, Work

SAMPLES: Final = 3
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


PoolKey = tuple[Kind, str]


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
    avoid: frozenset[tuple[str, int, str, int]] = frozenset()


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
    allowed = max(1, work.output_tokens_max - emitted) if work.output_tokens_max else OUTPUT_EXPECTED
    return min(allowed, OUTPUT_EXPECTED)


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
        self._stood: dict[Seat, tuple[int, int]] = {}
        self._width = 1
        self._tree = [0, 0]

    @property
    def free(self) -> int:
        """Free slots of all seats; seats of one engine share its slots and are each counted."""
        return self._tree[1]

    def add(self, seat: Seat) -> None:
        """A seat joins. Its weight is set by ``refresh``."""
        if self._holes:
            at = self._holes.pop()
            self.seats[at] = seat
        else:
            at = len(self.seats)
            self.seats.append(seat)
            if at >= self._width:
                self._grow()
        self._at[seat] = at
        self._stood[seat] = (0, 0)
        self.count += 1
        self.owners.add(seat)
        self.refresh(seat)

    def remove(self, seat: Seat) -> None:
        """A seat leaves for good."""
        at = self._at.pop(seat)
        self._weigh(at, 0)
        available, slots = self._stood.pop(seat)
        self.available -= available
        self.slots -= slots
        self.seats[at] = None
        self._holes.append(at)
        self.count -= 1
        self.owners.remove(seat)

    def refresh(self, seat: Seat) -> None:
        """Its engine changed: take its free slots over."""
        engine = seat.engine
        available = engine.available
        self.stand(seat, available, engine.slots if available else 0, engine.free)

    def stand(self, seat: Seat, available: bool, slots: int, free: int) -> None:
        """How its engine stands; without ``available`` it counts with no slots."""
        self._weigh(self._at[seat], free)
        before = self._stood[seat]
        if before != (available, slots):
            self._stood[seat] = (available, slots)
            self.available += available - before[0]
            self.slots += slots - before[1]

    def sample(self, draw: int) -> Seat | None:
        """One seat by its share of the free slots; None when nothing is free."""
        tree, total = self._tree, self._tree[1]
        if not total:
            return None
        left = int(unit(draw) * total)
        at = 1
        while at < self._width:
            at *= 2
            if left >= tree[at]:
                left -= tree[at]
                at += 1
        return self.seats[at - self._width]

    def scan(self, draw: int) -> Iterable[Seat]:
        """Some of the seats, from a drawn position on; every one of a small fleet."""
        size = len(self.seats)
        start = draw % size if size else 0
        for step in range(min(SCAN_MAX, size)):
            seat = self.seats[(start + step) % size]
            if seat is not None:
                yield seat

    def __contains__(self, seat: Seat) -> bool:
        return seat in self._at

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._at)

    def _weigh(self, at: int, weight: int) -> None:
        tree = self._tree
        node = at + self._width
        change = weight - tree[node]
        if change:
            while node:
                tree[node] += change
                node //= 2

    def _grow(self) -> None:
        leaves = self._tree[self._width :] + [0] * self._width
        self._width *= 2
        self._tree = [0] * self._width + leaves
        for node in range(self._width - 1, 0, -1):
            self._tree[node] = self._tree[2 * node] + self._tree[2 * node + 1]


def pool_keys(engine: Engine) -> list[PoolKey]:
    """The pools that the engine's seats are in, in an order that is the same in every process."""
    return [(kind, model) for model, seat in engine.seats.items() for kind in sorted(seat.capability.kinds)]


class Router:
    """The pools, and the policy that ranks their seats."""

    def __init__(self, estimator: Estimator | None = None) -> None:
        self.estimator = estimator or Estimator()
        self.memory = Memory()
        self.pools: dict[PoolKey, Pool] = {}
        self._joined: dict[Seat, list[Pool]] = {}

    def add(self, seat: Seat) -> None:
        """A seat joins the pool of each kind that its capability does."""
        pools = self._joined[seat] = []
        for kind in sorted(seat.capability.kinds):
            pool = self.pools.setdefault((kind, seat.capability.model), Pool())
            pools.append(pool)
            pool.add(seat)

    def remove(self, seat: Seat) -> None:
        """A seat is gone; a pool without seats goes with its last one."""
        del self._joined[seat]
        for kind in sorted(seat.capability.kinds):
            pool = self.pools[(kind, seat.capability.model)]
            pool.remove(seat)
            if not pool.count:
                del self.pools[(kind, seat.capability.model)]

    def refresh(self, engine: Engine) -> None:
        """The engine's free slots or standing changed."""
        available = engine.available
        slots, free = engine.slots if available else 0, engine.free
        for seat in engine.seats.values():
            for pool in self._joined[seat]:
                pool.stand(seat, available, slots, free)

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
        candidates = pool.scan(ask.draw) if alone else self._candidates(pool, ask, depths)
        found = [one for one in candidates if self._takes(one, ask, ask.avoid)]
        if not found and not alone:
            found = [one for one in pool.scan(ask.draw) if self._takes(one, ask, ask.avoid)]
        if not found and ask.avoid and not self._other(pool, ask):
            found = [one for one in pool.scan(ask.draw) if self._takes(one, ask, frozenset())]
        if len(found) < 2:
            return found
        costs = [(self.cost_s(one, ask, depths.get(one, 0)), mix(ask.draw ^ one.salt)) for one in found]
        return [found[at] for at in sorted(range(len(found)), key=costs.__getitem__)]

    def cost_s(self, seat: Seat, ask: Ask, cached_blocks: int = 0) -> float:
        """What this work would cost on this seat, in seconds."""
        engine = seat.engine
        doubt_s = 0.0 if engine.doubted_s is None else DOUBT_COST_S
        if ask.need.kind is Kind.TRANSCODE:
            pixels = engine.backlog / max(1, engine.slots) + ask.pixels
            return self.estimator.predict_transcode_s(seat.key, int(pixels)) + doubt_s
        blocks = max(1, len(ask.prefix))
        uncached = ask.prompt_tokens - ask.prompt_tokens * min(cached_blocks, blocks) // blocks
        seen = self.predict(seat, uncached, ask.output_tokens)
        backlog = engine.backlog + engine.others * OTHERS_TOKENS
        cost_s = backlog / max(seen[2], 1e-6) + seen[0] + doubt_s
        if ask.prompt_tokens > seat.capability.context_tokens:
            cost_s += OVERLONG_S
        return cost_s

    def predict(self, seat: Seat, prompt_tokens: int, output_tokens: int) -> tuple[float, float, float]:
        """Seconds to the first token and per further one, and the engine's tokens per second, if sent now."""
        engine, capability = seat.engine, seat.capability
        seen = self.estimator.predict(
            seat.key,
            capability.profile,
            prompt_tokens,
            output_tokens,
            engine.prefill_tokens,
            len(engine.held) + engine.others,
        )
        return (seen.ttft_s + (0.0 if capability.warm else COLD_S), seen.tpot_s, seen.rate_tokens_s)

    def _candidates(self, pool: Pool, ask: Ask, depths: dict[Seat, int]) -> dict[Seat, None]:
        """A few seats worth a look, each once, in an order that does not depend on the process."""
        found: dict[Seat | None, None] = {}
        if ask.prefix:
            found[pool.owners.of(ask.prefix[0])] = None
            found[pool.owners.of(ask.prefix[len(ask.prefix) // 2])] = None
            found.update(dict.fromkeys(list(depths)[-1:]))
        for index in range(SAMPLES):
            found[pool.sample(mix(ask.draw + index))] = None
        if ask.hint is not None:
            found[ask.hint.seats.get(ask.need.model)] = None
        return {one: None for one in found if one is not None and one in pool}

    def _takes(self, seat: Seat, ask: Ask, avoid: frozenset[tuple[str, int, str, int]]) -> bool:
        if not seat.engine.free or (avoid and seat.engine.identity in avoid):
            return False
        return fits(seat, ask.need)

    def _other(self, pool: Pool, ask: Ask) -> bool:
        """Whether there is a seat that fits, is well and has not failed this work, busy or not."""
        return any(
            one.engine.available and one.engine.identity not in ask.avoid and fits(one, ask.need)
            for one in pool.scan(ask.draw)
        )
