from kunlun.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PutItemsRequest(_message.Message):
    __slots__ = ("items", "features")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    items: _types_pb2.ItemIds
    features: _containers.RepeatedCompositeFieldContainer[_types_pb2.FeatureColumn]
    def __init__(self, items: _Optional[_Union[_types_pb2.ItemIds, _Mapping]] = ..., features: _Optional[_Iterable[_Union[_types_pb2.FeatureColumn, _Mapping]]] = ...) -> None: ...

class PutItemsResponse(_message.Message):
    __slots__ = ("stored",)
    STORED_FIELD_NUMBER: _ClassVar[int]
    stored: int
    def __init__(self, stored: _Optional[int] = ...) -> None: ...

class PutUsersRequest(_message.Message):
    __slots__ = ("user_ids", "features")
    USER_IDS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    user_ids: _containers.RepeatedScalarFieldContainer[str]
    features: _containers.RepeatedCompositeFieldContainer[_types_pb2.FeatureColumn]
    def __init__(self, user_ids: _Optional[_Iterable[str]] = ..., features: _Optional[_Iterable[_Union[_types_pb2.FeatureColumn, _Mapping]]] = ...) -> None: ...

class PutUsersResponse(_message.Message):
    __slots__ = ("stored",)
    STORED_FIELD_NUMBER: _ClassVar[int]
    stored: int
    def __init__(self, stored: _Optional[int] = ...) -> None: ...
