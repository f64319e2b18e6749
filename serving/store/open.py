"""Opens the configured store: `embedded`, or the URL of a Redis-compatible server."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from model.schema import Schema
from serving.core.errors import StoreUnavailable
from serving.store.embedded import EmbeddedValkey
from serving.store.redis_store import RedisOptions, RedisStore

EMBEDDED = "embedded"
SCHEMES = ("redis", "rediss", "unix")


class EmbeddedStore(RedisStore):
    """A `RedisStore` on a child server of its own."""

    def __init__(self, server: EmbeddedValkey, schema: Schema, options: RedisOptions | None = None) -> None:
        super().__init__(server.url, schema, options)
        self.server = server

    async def close(self) -> None:
        """Disconnect, then stop the child."""
        await super().close()
        self.server.close()


async def open_store(
    url: str, schema: Schema, *, data_dir: Path | None = None, options: RedisOptions | None = None
) -> RedisStore:
    """Connect and check that the store answers; raises `StoreUnavailable` with the URL, never its password."""
    if url == EMBEDDED:
        return EmbeddedStore(EmbeddedValkey(data_dir), schema, options)
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise StoreUnavailable(f"store: expected 'embedded' or a URL of {', '.join(f'{s}://' for s in SCHEMES)}, found {url!r}")
    store = RedisStore(url, schema, options)
    try:
        await store.ping()
    except StoreUnavailable as error:
        await store.close()
        raise StoreUnavailable(f"{parts.scheme}://{parts.hostname or parts.path}: {error}") from error
    return store
