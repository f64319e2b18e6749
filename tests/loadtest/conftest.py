"""The compiled model that the baselines' tests share with the serving tests."""

from tests.serving.compiled import artifact, engine_cache, fused_engine_cache

__all__ = ["artifact", "engine_cache", "fused_engine_cache"]
