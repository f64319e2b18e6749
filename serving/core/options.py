"""Every knob of the core, documented where it is declared. Read from the server's configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model.config import StrictModel

Share = Annotated[float, Field(gt=0, le=1)]


class CoreOptions(StrictModel):
    """Options of one `Ranker`.

    `slots`: engine slots, one thread and one session each; on CPUs usually one per core.
    `slot_cpus`: CPU that each slot's thread is pinned to, repeated when there are more slots (empty: none is pinned).
    `max_queue`: requests admitted and not yet answered; more are refused with retry advice.
    `work_budget_ms`: requests are merged, and huge ones split, up to this much engine time per batch.
    `background_budget_ms`: the same for background encodes, which delay whatever arrives meanwhile.
    `hand_ahead_ms`: how long before its predicted end a busy slot is handed its next batch.
    `stretch`: a request is due after this many times its own engine time, so small requests pass large ones
    (0: first come, first served); after half of its time budget at the latest.
    `max_batch_candidates`, `max_batch_requests`, `max_batch_users`: largest shape buckets.
    The CPU engine compiles `encode_user` for every number of users (1, 2, 4, …) at every history level: about 30 MB per shape
    and slot for `small`; `max_batch_users: 1` needs least.
    `user_state_cache_mb`: memory for user states, least recently used first out.
    `item_cache_mb`, `item_ttl_s`: near cache of item features and of the graph inputs made of them (both in the bound).
    Changes in the store are heard of; the time to live is for what is not. `item_stale_s`: how long after it a row is still
    used while it is read again in the background. `user_cache_mb`, `user_ttl_s`: the same for features of users, which are
    read again by the next Rank.
    `store_budget_share`: share of the remaining deadline that the store read may take.
    `store_timeout_s`: and its upper bound. `store_retry_s`: pause after `store_failures` failed reads in a row and
    `store_timeout_s` without an answer, during which requests are answered without the store at once; one read probes after it.
    `read_your_writes_s`: how long a Rank may wait for the event version that it asked for.
    `degrade`: under overload answer everybody in time on cheaper rungs; off: refuse what would be late.
    `degrade_from`, `degrade_to`: share of a request's time budget that the queue needs when degrading begins, and
    when it is complete.
    `encode_on_write`: keep states warm by encoding after `RecordEvents`, when nothing else waits.
    """

    slots: Annotated[int, Field(ge=1, le=256)] = 1
    slot_cpus: tuple[Annotated[int, Field(ge=0)], ...] = ()
    max_queue: Annotated[int, Field(ge=1)] = 256
    work_budget_ms: Annotated[float, Field(gt=0)] = 20.0
    background_budget_ms: Annotated[float, Field(gt=0)] = 5.0
    hand_ahead_ms: Annotated[float, Field(ge=0)] = 1.0
    stretch: Annotated[float, Field(ge=0)] = 20.0
    max_batch_candidates: Annotated[int, Field(ge=8, le=65_536)] = 1024
    max_batch_requests: Annotated[int, Field(ge=1, le=1024)] = 32
    max_batch_users: Annotated[int, Field(ge=1, le=1024)] = 4
    user_state_cache_mb: Annotated[float, Field(gt=0)] = 256.0
    item_cache_mb: Annotated[float, Field(gt=0)] = 128.0
    item_ttl_s: Annotated[float, Field(gt=0)] = 60.0
    item_stale_s: Annotated[float, Field(ge=0)] = 60.0
    user_cache_mb: Annotated[float, Field(gt=0)] = 32.0
    user_ttl_s: Annotated[float, Field(gt=0)] = 60.0
    store_budget_share: Share = 0.5
    store_timeout_s: Annotated[float, Field(gt=0)] = 0.5
    store_failures: Annotated[int, Field(ge=1)] = 3
    store_retry_s: Annotated[float, Field(gt=0)] = 0.5
    read_your_writes_s: Annotated[float, Field(ge=0)] = 0.05
    degrade: bool = True
    degrade_from: Share = 0.1
    degrade_to: Share = 0.7
    encode_on_write: bool = True
