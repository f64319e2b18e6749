"""The atomic scripts that the store runs, by name: ``<name>.lua`` beside this file says what each does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Script:
    """Source, and the digest that `EVALSHA` calls it by."""

    source: bytes
    sha: str

    @classmethod
    def named(cls, name: str) -> Script:
        """Read from the package."""
        source = files("serving.store").joinpath(f"{name}.lua").read_bytes()
        return cls(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


APPEND_EVENTS = Script.named("append_events")
REPLACE_HISTORY = Script.named("replace_history")
APPEND_OUTCOMES = Script.named("append_outcomes")
COMMIT_FEEDBACK = Script.named("commit_feedback")
LEASE = Script.named("lease")
STORE_TIME = Script.named("store_time")
