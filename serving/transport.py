"""The gRPC listener: channel options, TLS, and the standard services (health, reflection) beside ours.

Called by `serving.server`. Health answers per service name and for the whole server (""); everything
starts NOT_SERVING.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kunlun.v1 import events_pb2, features_pb2, feedback_pb2, ranker_pb2
from model.config import ConfigError
from serving.config import ServerConfig, TlsConfig
from serving.protocol.guard import Guard

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (ranker_pb2, "Ranker"),
        (events_pb2, "Events"),
        (features_pb2, "Features"),
        (feedback_pb2, "Feedback"),
    )
)
TRANSPORT_LIMIT_FACTOR = 16
"""gRPC's own receive limit over ours: up to here the caller is told which limit was exceeded, beyond it only the code."""


def open_grpc_server(config: ServerConfig, guard: Guard) -> grpc.aio.Server:
    """A server with the guard in front, not yet bound; raises `ConfigError`."""
    if config.front_end == "native":
        return _open_native(config, guard)
    age = [("grpc.max_connection_age_ms", int(config.max_connection_age_s * 1000))] if config.max_connection_age_s else []
    return grpc.aio.server(
        interceptors=[guard],
        maximum_concurrent_rpcs=config.max_concurrent_calls,
        options=[
            *_message_limits(config),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a silent share of its traffic
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ("grpc.max_connection_age_grace_ms", int(config.shutdown_grace_s * 1000)),
            *age,
        ],
    )


def _open_native(config: ServerConfig, guard: Guard) -> grpc.aio.Server:
    """The same server with HTTP/2 and gRPC framing in Rust; bidirectional streams and reflection pass through grpcio."""
    if config.tls is not None:
        raise ConfigError("front_end: expected grpcio together with tls, found native")
    if config.max_connection_age_s:
        raise ConfigError("front_end: expected grpcio together with max_connection_age_s, found native")
    try:
        from pygrpc_native.aio import server
    except ImportError as error:
        raise ConfigError("front_end: native needs `pip install 'kunlun-serving[native]'`") from error
    opened: grpc.aio.Server = server(interceptors=[guard], options=_message_limits(config))
    return opened


def _message_limits(config: ServerConfig) -> list[tuple[str, int]]:
    most = min(config.max_message_bytes * TRANSPORT_LIMIT_FACTOR, 2**31 - 1)
    return [("grpc.max_receive_message_length", most), ("grpc.max_send_message_length", -1)]


def bind(server: grpc.aio.Server, config: ServerConfig) -> str:
    """Listen; returns `host:port`. Raises `ConfigError`."""
    host = f"[{config.host}]" if ":" in config.host and not config.host.startswith("[") else config.host
    try:
        if config.tls is None:
            port = server.add_insecure_port(f"{host}:{config.port}")
        else:
            port = server.add_secure_port(f"{host}:{config.port}", _credentials(config.tls))
    except RuntimeError as error:
        raise ConfigError(
            f"port: {host}:{config.port} cannot be listened on (in use, or not an address of this host)"
        ) from error
    return f"{host}:{port}"


class Health:
    """`grpc.health.v1`: one status for the server and each of its services, plus reflection of all."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    async def starting(self) -> None:
        """Not ready yet."""
        await self._set_all(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def serving(self) -> None:
        """Ready."""
        await self._set_all(health_pb2.HealthCheckResponse.SERVING)

    async def stopping(self) -> None:
        """Not ready any more, for good."""
        await self._servicer.enter_graceful_shutdown()

    async def _set_all(self, status: int) -> None:
        names: Sequence[str] = ("", *SERVICES)
        for name in names:
            await self._servicer.set(name, status)


def _credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    try:
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
        client_ca = tls.client_ca.read_bytes() if tls.client_ca is not None else None
    except OSError as error:
        raise ConfigError(f"tls: {error.filename} cannot be read: {error.strerror}") from error
    return grpc.ssl_server_credentials([pair], root_certificates=client_ca, require_client_auth=client_ca is not None)
