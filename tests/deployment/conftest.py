"""The compiled model that the serving tests share."""

from tests.serving.compiled import artifact, engine_cache

__all__ = ["artifact", "engine_cache"]
