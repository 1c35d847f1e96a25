"""Money is integer nano-dollars; a price is nano-dollars per million units, rounded once, at settlement."""

from __future__ import annotations

from groundswell.model.value import value

NANO_PER_DOLLAR = 1_000_000_000
UNITS_PER_PRICE = 1_000_000


@value
class Price:
    """What a node asks, in nano-dollars per million units.

    ``input_nano`` and ``output_nano`` are per million tokens; ``pixel_nano`` is per million output pixels
    (width x height x frames, summed over renditions, as counted in the returned bytes).
    """

    input_nano: int = 0
    output_nano: int = 0
    pixel_nano: int = 0

    def __post_init__(self) -> None:
        if min(self.input_nano, self.output_nano, self.pixel_nano) < 0:
            raise ValueError("a price is never negative")


@value
class Usage:
    """What one work really used. Tokens for text, output pixels and media milliseconds for video."""

    input_tokens: int = 0
    output_tokens: int = 0
    pixels: int = 0
    media_ms: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.pixels + other.pixels,
            self.media_ms + other.media_ms,
        )


def cost_nano(usage: Usage, price: Price) -> int:
    """The cost in nano-dollars, rounded up once, so that no work with a price is ever free."""
    total = (
        usage.input_tokens * price.input_nano
        + usage.output_tokens * price.output_nano
        + usage.pixels * price.pixel_nano
    )
    return -(-total // UNITS_PER_PRICE)


def dollars(nano: int) -> str:
    """Nano-dollars as a person reads them, ``$0.000012``: trailing zeros are cut down to two decimals."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, part = divmod(nano, NANO_PER_DOLLAR)
    decimals = f"{part:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole}.{decimals}"
