"""The random artifact of the serving tests."""

from tests.serving.compiled import artifact

__all__ = ["artifact"]
