"""Event tokens: what `RecordEvents` returns so that a later `Rank` reads at least those events.

Format ``v1:<user>=<version>,...``: the user's key as 16 hex digits and the history version after the
call in hex. Callers treat it as opaque. A token that names other users only asks nothing of this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from model.hashing import string_key
from model.schema import HashSpec
from serving.core.errors import InvalidField
from serving.protocol.limits import MAX_TOKEN

_PREFIX = "v1:"
_ENTRIES = re.compile(r"[0-9a-f]{16}=[0-9a-f]{1,15}(?:,[0-9a-f]{16}=[0-9a-f]{1,15})*")
_MASK = (1 << 64) - 1


def event_token(versions: Mapping[str, int], spec: HashSpec) -> str:
    """The token of history versions by user id."""
    return _PREFIX + ",".join(f"{string_key(user, spec) & _MASK:016x}={version:x}" for user, version in versions.items())


def version_asked(token: str, user_key: int) -> int:
    """The history version that `token` asks for of this user, 0 for none; raises `InvalidField`."""
    if not token:
        return 0
    entries = token.removeprefix(_PREFIX)
    if len(token) > MAX_TOKEN or entries == token or not _ENTRIES.fullmatch(entries):
        raise InvalidField("min_event_token", "the event_token of a RecordEvents reply, unchanged", repr(token[:40]))
    at = entries.find(f"{user_key & _MASK:016x}=")
    return int(entries[at + 17 :].split(",", 1)[0], 16) if at >= 0 else 0
