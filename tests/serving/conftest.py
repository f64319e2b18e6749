"""The compiled models that all serving tests share."""

from tests.serving.compiled import artifact, engine_cache, exact_artifact, exact_engine_cache

__all__ = ["artifact", "engine_cache", "exact_artifact", "exact_engine_cache"]
