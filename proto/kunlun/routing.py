"""The header by which a balancer can send all calls of one user to one server, whose cache then holds that user's state.

A digest stands for the user's id: headers end up in access logs, and hold ASCII only.
"""

from __future__ import annotations

from hashlib import blake2b

USER_HEADER = "kunlun-user"
DIGEST_BYTES = 8

Metadata = tuple[tuple[str, str], ...]


def user_metadata(user_id: str) -> Metadata:
    """gRPC metadata of a call about one user."""
    return ((USER_HEADER, blake2b(user_id.encode(), digest_size=DIGEST_BYTES).hexdigest()),)
