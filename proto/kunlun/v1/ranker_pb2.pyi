from kunlun.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RankStreamRequest(_message.Message):
    __slots__ = ("rank", "budget_ms")
    RANK_FIELD_NUMBER: _ClassVar[int]
    BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    rank: RankRequest
    budget_ms: int
    def __init__(self, rank: _Optional[_Union[RankRequest, _Mapping]] = ..., budget_ms: _Optional[int] = ...) -> None: ...

class RankStreamResponse(_message.Message):
    __slots__ = ("request_id", "rank", "status")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    rank: RankResponse
    status: RankStatus
    def __init__(self, request_id: _Optional[str] = ..., rank: _Optional[_Union[RankResponse, _Mapping]] = ..., status: _Optional[_Union[RankStatus, _Mapping]] = ...) -> None: ...

class RankStatus(_message.Message):
    __slots__ = ("code", "message", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    details: bytes
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., details: _Optional[bytes] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("request_id", "user_id", "model", "version", "candidates", "candidate_features", "context_features", "user_features", "top_k", "include_timings", "min_event_token", "time_ms", "priority")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    USER_FEATURES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MIN_EVENT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    user_id: str
    model: str
    version: str
    candidates: _types_pb2.ItemIds
    candidate_features: _containers.RepeatedCompositeFieldContainer[_types_pb2.FeatureColumn]
    context_features: _containers.RepeatedCompositeFieldContainer[_types_pb2.FeatureColumn]
    user_features: _containers.RepeatedCompositeFieldContainer[_types_pb2.FeatureColumn]
    top_k: int
    include_timings: bool
    min_event_token: str
    time_ms: int
    priority: _types_pb2.Priority
    def __init__(self, request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., candidates: _Optional[_Union[_types_pb2.ItemIds, _Mapping]] = ..., candidate_features: _Optional[_Iterable[_Union[_types_pb2.FeatureColumn, _Mapping]]] = ..., context_features: _Optional[_Iterable[_Union[_types_pb2.FeatureColumn, _Mapping]]] = ..., user_features: _Optional[_Iterable[_Union[_types_pb2.FeatureColumn, _Mapping]]] = ..., top_k: _Optional[int] = ..., include_timings: _Optional[bool] = ..., min_event_token: _Optional[str] = ..., time_ms: _Optional[int] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("request_id", "model", "version", "order", "items", "scores", "values", "rung", "rung_reason", "newest_event_age_ms", "history_length", "user_state_cached", "unknown_items", "unknown_user", "receipt", "timings")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    RUNG_REASON_FIELD_NUMBER: _ClassVar[int]
    NEWEST_EVENT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    USER_STATE_CACHED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEMS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_USER_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    version: str
    order: _containers.RepeatedScalarFieldContainer[int]
    items: _types_pb2.ItemIds
    scores: _containers.RepeatedCompositeFieldContainer[_types_pb2.TaskScores]
    values: _containers.RepeatedScalarFieldContainer[float]
    rung: _types_pb2.Rung
    rung_reason: str
    newest_event_age_ms: int
    history_length: int
    user_state_cached: bool
    unknown_items: int
    unknown_user: bool
    receipt: bytes
    timings: Timings
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., order: _Optional[_Iterable[int]] = ..., items: _Optional[_Union[_types_pb2.ItemIds, _Mapping]] = ..., scores: _Optional[_Iterable[_Union[_types_pb2.TaskScores, _Mapping]]] = ..., values: _Optional[_Iterable[float]] = ..., rung: _Optional[_Union[_types_pb2.Rung, str]] = ..., rung_reason: _Optional[str] = ..., newest_event_age_ms: _Optional[int] = ..., history_length: _Optional[int] = ..., user_state_cached: _Optional[bool] = ..., unknown_items: _Optional[int] = ..., unknown_user: _Optional[bool] = ..., receipt: _Optional[bytes] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("convert_us", "store_us", "queue_us", "encode_us", "score_us", "total_us")
    CONVERT_US_FIELD_NUMBER: _ClassVar[int]
    STORE_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    ENCODE_US_FIELD_NUMBER: _ClassVar[int]
    SCORE_US_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    convert_us: int
    store_us: int
    queue_us: int
    encode_us: int
    score_us: int
    total_us: int
    def __init__(self, convert_us: _Optional[int] = ..., store_us: _Optional[int] = ..., queue_us: _Optional[int] = ..., encode_us: _Optional[int] = ..., score_us: _Optional[int] = ..., total_us: _Optional[int] = ...) -> None: ...
