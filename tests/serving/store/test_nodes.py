"""Where commands go: TLS and ACL users, Sentinels that name a new primary, slots that move between a Cluster's nodes."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.crc import key_slot
from redis.retry import Retry
from store_fixtures import SCHEMA, cluster, debian_server, event

from loadtest.processes import free_ports
from serving.core.errors import StoreUnavailable
from serving.store.base import RankInputs
from serving.store.keys import version_key
from serving.store.nodes import open_nodes, pack_commands, without_secrets
from serving.store.open import open_store
from serving.store.redis_store import RedisOptions, RedisStore

NO_ITEMS = np.empty(0, np.int64)


def answering(**where: object) -> redis.Redis:
    client = redis.Redis(retry=Retry(ConstantBackoff(0.05), 200), **where)
    client.ping()
    return client


def test_tls_and_an_acl_user(tmp_path: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (port,) = free_ports(1)
    files = {"cert-file": "cert.pem", "key-file": "key.pem", "ca-cert-file": "cert.pem"}
    tls = [part for name, file in files.items() for part in (f"--tls-{name}", str(tmp_path / file))]
    acl = ["--user", "ann", "on", ">hush", "~kunlun:*", "&*", "+@all", "--user", "default", "off"]

    async def scenario() -> None:
        url = f"rediss://ann:hush@127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'cert.pem'}"
        store = await open_store(url, SCHEMA)
        assert store.public_url == f"rediss://127.0.0.1:{port}/0"
        await store.record_events([event("e", "ann", 1, 1)])
        assert (await store.read_rank_inputs("ann", NO_ITEMS, 1.0)).history_version == 1
        await store.close()
        with pytest.raises(StoreUnavailable) as caught:
            await open_store(url.replace("ann:hush", "ann:wrong"), SCHEMA)
        assert "wrong" not in str(caught.value)
        with pytest.raises(StoreUnavailable):  # a certificate that nobody has signed
            await open_store(url.partition("?")[0], SCHEMA)

    arguments = ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", "--save", "", *tls, *acl]
    with debian_server(tmp_path / "redis", *arguments):
        where = {"port": port, "ssl": True, "ssl_ca_certs": str(tmp_path / "cert.pem"), "username": "ann", "password": "hush"}
        answering(host="127.0.0.1", **where).close()
        asyncio.run(scenario())


async def read_once_it_answers(store: RedisStore, user: str, else_say: str) -> RankInputs:
    deadline = time.monotonic() + 30
    while True:
        try:
            return await store.read_rank_inputs(user, NO_ITEMS, 1.0)
        except StoreUnavailable:
            assert time.monotonic() < deadline, else_say
            await asyncio.sleep(0.1)


def test_sentinels_name_the_new_primary(tmp_path: Path) -> None:
    ports = free_ports(3)
    first, second, sentinel = ports
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {sentinel}\nbind 127.0.0.1\nsentinel monitor shop 127.0.0.1 {first} 1\n"
        "sentinel down-after-milliseconds shop 300\nsentinel failover-timeout shop 1000\n"
    )

    async def scenario(kill: subprocess.Popen[bytes]) -> None:
        url = f"redis+sentinel://127.0.0.1:{sentinel}/shop"
        careful = await open_store(url, SCHEMA, options=RedisOptions(replicas=2))
        with pytest.raises(StoreUnavailable, match="written, but 1 of 2 replicas had it within 1000 ms"):
            await careful.record_events([event("e", "zoe", 1, 1)])
        await careful.close()
        store = await open_store(url, SCHEMA, options=RedisOptions(replicas=1))
        await store.record_events([event("e", "ann", 1, 1)])
        kill.kill()
        read = await read_once_it_answers(store, "ann", "no new primary was found")
        assert read.history_version == 1, "acknowledged by the replica, so nothing is lost"
        alone = await open_store(url, SCHEMA)  # the old primary is gone, and with it the replica
        assert (await alone.record_events([event("f", "ann", 2, 2)])).versions == {"ann": 2}
        await alone.close()
        await store.close()

    plain = ["--bind", "127.0.0.1", "--save", ""]
    with debian_server(tmp_path / "a", "--port", str(first), *plain) as primary:
        answering(port=first).close()
        with debian_server(tmp_path / "b", "--port", str(second), *plain, "--replicaof", "127.0.0.1", str(first)):
            replica = answering(port=second)
            wait_until(lambda: replica.info("replication")["master_link_status"] == "up")
            with debian_server(tmp_path / "s", str(config), sentinel=True):
                watcher = answering(port=sentinel)
                wait_until(lambda: int(watcher.sentinel_master("shop")["num-slaves"]) == 1)
                asyncio.run(scenario(primary))


def test_a_slot_that_moves_is_followed(tmp_path: Path) -> None:
    async def scenario(store: RedisStore, ports: list[int]) -> None:
        await store.record_events([event("e", "ann", 1, 1)])
        slot = key_slot(version_key(store.keys.tag("ann")).encode())
        clients = [redis.Redis(port=port) for port in ports]
        names = [client.execute_command("CLUSTER", "MYID").decode() for client in clients]
        source = next(at for at, client in enumerate(clients) if client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 9))
        target = (source + 1) % len(ports)
        clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
        clients[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
        assert (await store.read_rank_inputs("ann", NO_ITEMS, 2.0)).history_version == 1, "the keys are still there"
        keys = clients[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 9)
        clients[source].execute_command("MIGRATE", "127.0.0.1", ports[target], "", 0, 5000, "KEYS", *keys)
        assert (await store.read_rank_inputs("ann", NO_ITEMS, 2.0)).history_version == 1, "asked of the other node"
        assert (await store.record_events([event("f", "ann", 2, 2)])).versions == {"ann": 2}
        for client in clients:
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[target])
        read = await store.read_rank_inputs("ann", NO_ITEMS, 2.0)
        assert read.histories["click"]["item"].tolist() == [1, 2]
        assert store.stats.corrupt_values == 0

    async def main(url: str) -> None:
        store = await open_store(url, SCHEMA)
        await scenario(store, [int(node.rpartition(":")[2]) for node in url.partition("://")[2].split(",")])
        await store.close()

    with cluster(tmp_path) as url:
        asyncio.run(main(url))


def test_a_replica_that_takes_over_in_a_cluster_is_found(tmp_path: Path) -> None:
    async def main(url: str) -> None:
        store = await open_store(url, SCHEMA, options=RedisOptions(replicas=1))
        await store.record_events([event("e", "ann", 1, 1)])
        slot = key_slot(version_key(store.keys.tag("ann")).encode())
        ports = [int(node.rpartition(":")[2]) for node in url.partition("://")[2].split(",")]
        owner = next(p for p in ports[:3] if redis.Redis(port=p).execute_command("CLUSTER", "COUNTKEYSINSLOT", slot))
        redis.Redis(port=owner).shutdown(nosave=True, now=True, force=True)
        read = await read_once_it_answers(store, "ann", "the replica was not found")
        assert read.history_version == 1, "acknowledged by the replica, so nothing is lost"
        await store.close()
        alone = await open_store(url, SCHEMA)
        assert (await alone.record_events([event("f", "ann", 2, 2)])).versions == {"ann": 2}
        await alone.close()

    with cluster(tmp_path, replicas=True) as url:
        asyncio.run(main(url))


def test_commands_are_packed_as_the_protocol_says() -> None:
    assert pack_commands([("GET", "é"), ("SET", b"\r\n", 5)]) == (
        b"*2\r\n$3\r\nGET\r\n$2\r\n\xc3\xa9\r\n*3\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$1\r\n5\r\n"
    )


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis+sentinel://h:1", "ends in the name of the service"),
        ("redis+cluster://", "expected host:port, found ''"),
        ("redis+sentinel://h:port/shop", "Port could not be cast"),
        ("redis://h:port/0", "Port could not be cast"),
    ],
)
def test_an_unreadable_url_is_a_value_error(url: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        open_nodes(url, max_connections=1, timeout_s=1.0)


def test_lists_of_hosts_are_shown_without_credentials() -> None:
    assert without_secrets("redis+cluster://ann:hush@a:1,b:2?ssl_keyfile=k") == "redis+cluster://a:1,b:2"


def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
