"""The guard around every kunlun call: message size, readiness, and the error table.

A server interceptor, so that servicer methods hold no error handling. gRPC's own receive limit
answers with a bare RESOURCE_EXHAUSTED; ours sits below it and names the field, what was expected and
what was found, before the message is parsed. Health and reflection pass untouched. Errors outside
the table are logged with their traceback and leave as INTERNAL without their text.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from serving.core.errors import InvalidField, Overloaded, ServingError, Unready
from serving.core.types import Priority
from serving.protocol.errors import code_of, message_of, overload_details, trailing_details
from serving.protocol.raw_priority import asks_high_priority
from serving.protocol.time_left import time_left_s

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_OURS = "/kunlun."
Handler = Callable[[Any, Any], Awaitable[Any]]
Refusal = Callable[[float, Priority], Overloaded | None]


class CallObserver(Protocol):
    """What the guard reports of every call."""

    def called(self, method: str, code: str, seconds: float) -> None:
        """One finished call."""
        ...

    def rejected(self, error: Exception) -> None:
        """A call that ended with an error of the table."""
        ...


@dataclass(frozen=True)
class _Unusable:
    """Stands in for a message that was too large or did not parse, until the handler runs."""

    error: InvalidField


@dataclass(frozen=True)
class Failed:
    """How one message ended without a reply."""

    code: grpc.StatusCode
    error: Exception


class Guard(grpc.aio.ServerInterceptor):
    """Owns whether calls are accepted (`ready`); set by the server after warm-up."""

    def __init__(self, max_message_bytes: int, observer: CallObserver) -> None:
        self._max_bytes, self._observer = max_message_bytes, observer
        self.ready = False
        self._wrapped: dict[str, tuple[Handler, Callable[[bytes], Any]]] = {}
        self.refusal: Refusal | None = None
        """Why a Rank that must be answered by this time (`time.monotonic()`) is refused unread; None: no such gate."""
        self.refused: Callable[[str], None] = lambda reason: None
        """Told of every Rank that `refusal` turned away; the core never sees it."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handlers of our services."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_OURS):
            return handler
        if handler.stream_stream is not None:  # the service guards each message by `attempt`
            return grpc.stream_stream_rpc_method_handler(
                handler.stream_stream,
                request_deserializer=self._bounded(handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        if handler.unary_unary is None:
            return handler
        # Without a deserializer the handler gets bytes, and parses them once it is known that the call is wanted.
        guarded, parse = self._wrapped.get(method, (None, None))
        if guarded is None or parse is None:
            name = method.rsplit("/", 1)[-1]
            parse = self._bounded(handler.request_deserializer)
            guarded = self._guarded(name, handler.unary_unary, parse)
            self._wrapped[method] = guarded, parse
        return grpc.unary_unary_rpc_method_handler(
            guarded, request_deserializer=None, response_serializer=handler.response_serializer
        )

    def _bounded(self, parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
        def parse_bounded(data: bytes) -> Any:
            if len(data) > self._max_bytes:
                return _Unusable(InvalidField("message", f"at most {self._max_bytes} bytes", f"{len(data)} bytes"))
            try:
                return parse(data) if parse is not None else data
            except DecodeError:
                return _Unusable(InvalidField("message", "a message of the kunlun.v1 API", "bytes that do not parse"))

        return parse_bounded

    def _guarded(self, method: str, handler: Handler, parse: Callable[[bytes], Any]) -> Handler:
        may_refuse = method == "Rank"

        async def call(data: bytes, context: Any) -> Any:
            if may_refuse and self.refusal is not None and self.ready:
                left_s = time_left_s(context)
                deadline = math.inf if left_s is None else time.monotonic() + left_s
                refusal = self.refusal(deadline, Priority.NORMAL)
                if refusal is not None and asks_high_priority(data):
                    refusal = self.refusal(deadline, Priority.HIGH)
                if refusal is not None:  # before the message is parsed: the less a refusal costs, the more can be served
                    self._observer.called(method, "RESOURCE_EXHAUSTED", 0.0)
                    self.refused("overloaded")
                    return await context.abort(code_of(refusal), str(refusal), overload_details(refusal))
            request = parse(data)
            response = await self.attempt(method, request, lambda: handler(request, context))
            if isinstance(response, Failed):
                error = response.error
                return await context.abort(response.code, message_of(error), trailing_details(error))
            return response

        return call

    async def attempt(self, method: str, request: Any, work: Callable[[], Awaitable[T]]) -> T | Failed:
        """Answer one message by `work`: readable and accepted ones only; counts it, and returns what it raises."""
        began, code = time.perf_counter(), grpc.StatusCode.CANCELLED
        try:
            if isinstance(request, _Unusable):
                raise request.error
            if not self.ready:
                raise Unready("the server is starting or stopping")
            response = await work()
            code = grpc.StatusCode.OK
            return response
        except Exception as error:
            code, failure = code_of(error), error
        finally:
            self._observer.called(method, code.name, time.perf_counter() - began)
        self._report(method, failure)
        return Failed(code, failure)

    def _report(self, method: str, failure: Exception) -> None:
        if code_of(failure) is grpc.StatusCode.INTERNAL:
            _LOG.error("%s failed", method, exc_info=failure)
        elif isinstance(failure, ServingError):
            self._observer.rejected(failure)
