"""Opens the configured store: `embedded`, or the URL of a Redis-compatible server."""

from __future__ import annotations

from pathlib import Path

from model.schema import Schema
from serving.core.errors import StoreUnavailable
from serving.store.embedded import EmbeddedValkey, Sync
from serving.store.nodes import SCHEMES
from serving.store.redis_store import RedisOptions, RedisStore

EMBEDDED = "embedded"


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
    url: str,
    schema: Schema,
    *,
    data_dir: Path | None = None,
    data_sync: Sync = "everysec",
    options: RedisOptions | None = None,
) -> RedisStore:
    """Connect and check that the store answers; raises `StoreUnavailable` with the URL, never its password."""
    if url == EMBEDDED:
        embedded = EmbeddedStore(EmbeddedValkey(data_dir, sync=data_sync), schema, options)
        await embedded.announce_layouts()
        return embedded
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        found = f"the scheme {scheme!r}" if separator else "no scheme"  # nothing else of the URL: it may hold a password
        raise StoreUnavailable(f"store: expected 'embedded' or a URL of {', '.join(f'{s}://' for s in SCHEMES)}, found {found}")
    try:
        store = RedisStore(url, schema, options)
    except ValueError:  # its text may quote a part of the password
        raise StoreUnavailable(f"store: expected {scheme}://HOST:PORT/DATABASE, found a URL that cannot be read") from None
    try:
        await store.ping()
        await store.announce_layouts()
    except StoreUnavailable as error:
        await store.close()
        raise StoreUnavailable(f"{store.public_url}: {error}") from error
    return store
