"""``groundswell keys``: API keys, made and revoked in the store of this machine's gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from groundswell.cli.screen import paste, say, table
from groundswell.cli.settings import settings
from groundswell.model.errors import BadRequest

if TYPE_CHECKING:
    from groundswell.store.keys import ApiKey

T = TypeVar("T")
UNITS_S = {"h": 3600, "d": 86400, "w": 7 * 86400}


def register(app: typer.Typer) -> None:
    """Add the family."""
    keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
    app.add_typer(keys, name="keys")

    @keys.command()
    def create(
        name: Annotated[str, typer.Argument(help="What the key is for; shown in lists.")],
        scope: Annotated[
            list[str] | None,
            typer.Option(help="inference, video or admin; may be repeated. Without it: inference and video."),
        ] = None,
        tenant: Annotated[str, typer.Option(help="Whose usage it counts as.")] = "default",
        expires: Annotated[
            str | None, typer.Option(help="Lifetime such as 12h, 30d or 8w; default: no end.")
        ] = None,
    ) -> None:
        """Make a key. It is shown this once: only its fingerprint is kept.

        \b
          groundswell keys create laptop --scope inference --expires 30d
        """
        from groundswell.store.keys import KeyRing

        lifetime_s = None if expires is None else _lifetime_s(expires)

        async def make(ring: KeyRing) -> str:
            token, _ = await ring.create(tenant, name, scope or ["inference", "video"], lifetime_s)
            return token

        paste(_with_ring(make))

    @keys.command("list")
    def list_() -> None:
        """List the keys: what for, whose, until when. The keys themselves are not kept."""
        from groundswell.store.keys import KeyRing

        async def read(ring: KeyRing) -> list[ApiKey]:
            return await ring.list()

        now_ms = int(time.time() * 1000)
        rows = [
            [key.id, key.name, f"...{key.last4}", key.tenant, ",".join(sorted(key.scopes)), _end(key, now_ms)]
            for key in _with_ring(read)
        ]
        table(["id", "name", "key", "tenant", "scopes", "ends"], rows)

    @keys.command()
    def revoke(key_id: Annotated[str, typer.Argument(help="The id as `keys list` shows it.")]) -> None:
        """Revoke a key and the keys made with it; running gateways refuse it within a second."""
        from groundswell.store.keys import KeyRing

        async def end(ring: KeyRing) -> int:
            return await ring.revoke(key_id)

        count = _with_ring(end)
        say(f"revoked {count} key{'' if count == 1 else 's'}")


def _with_ring(use: Callable[..., Awaitable[T]]) -> T:
    from groundswell.wiring import open_keys

    async def run() -> T:
        async with open_keys(settings.config) as ring:
            return await use(ring)

    return asyncio.run(run())


def _lifetime_s(text: str) -> int:
    unit = UNITS_S.get(text[-1:])
    if unit is None or not text[:-1].isdigit() or int(text[:-1]) == 0:
        raise BadRequest("A lifetime is a number and h, d or w, such as 30d.", param="expires")
    return int(text[:-1]) * unit


def _end(key: ApiKey, now_ms: int) -> str:
    if key.revoked_ms is not None:
        return "revoked"
    if key.expires_ms is None:
        return "never"
    day = datetime.fromtimestamp(key.expires_ms / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
    return f"expired {day}" if key.expires_ms <= now_ms else day
