"""The compiled model that all serving tests share."""

from tests.serving.compiled import artifact, engine_cache

__all__ = ["artifact", "engine_cache"]
