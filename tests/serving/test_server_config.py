"""The server's configuration: files, flags over them, secrets, and mistakes that name the field."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model.config import ConfigError
from serving.config import ServerConfig, artifact_path, available_cpus, load_config, random_receipt_keys, receipt_keys

KEY = "0123456789abcdef"


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("repository: models\nport: 7000\nslots: 3\ncore: {max_queue: 9}\ntls: {certificate: c.pem, key: k.pem}\n")
    config = load_config(file, {"port": 0, "host": None})
    assert (config.port, config.host, config.slot_count, config.repository) == (0, "127.0.0.1", 3, Path("models"))
    assert (config.core_options.max_queue, config.core_options.slots) == (9, 3)
    assert config.tls is not None
    assert config.tls.client_ca is None


def test_the_environment_names_a_store_that_nothing_else_does(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("repository: models\n")
    secret = {"KUNLUN_STORE": "redis://:hush@store:6379"}
    assert load_config(file, {}, {}).store == "embedded"
    assert load_config(file, {}, secret).store == "redis://:hush@store:6379"
    assert load_config(file, {"store": "redis://flag"}, secret).store == "redis://flag"
    file.write_text("repository: models\nstore: redis://file\n")
    assert load_config(file, {}, secret).store == "redis://file"


def test_mistakes_name_file_and_field(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    for text, message in (
        ("repository: m\nprot: 1\n", "server.yaml: prot: unknown key; did you mean 'port'?"),
        ("repository: m\ncore: {max_que: 1}\n", "server.yaml: core.max_que: unknown key; did you mean 'max_queue'?"),
        ("port: 1\n", "server.yaml: repository: required key is missing"),
        ("repository: m\nport: -1\n", "server.yaml: port: Input should be greater than or equal to 0; found -1"),
        ("- a\n", "server.yaml: expected a mapping of keys, found list"),
        ("a: [\n", "server.yaml: not valid YAML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config(file, {})
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "absent.yaml", {})


def repository(root: Path, *versions: str) -> Path:
    """Directories that look exported."""
    for version in versions:
        (root / version).mkdir(parents=True)
        (root / version / "manifest.json").touch()
    return root


def test_the_newest_version_of_the_only_model_is_served(tmp_path: Path) -> None:
    root = repository(tmp_path, "shop/20260101T000000Z", "shop/20260301T000000Z", "shop/20260201T000000Z", ".engines/x")
    assert artifact_path(ServerConfig(repository=root)) == root / "shop/20260301T000000Z"
    assert artifact_path(ServerConfig(repository=root, version="20260101T000000Z")).name == "20260101T000000Z"


def test_version_numbers_are_compared_as_numbers(tmp_path: Path) -> None:
    root = repository(tmp_path, "shop/9", "shop/10", "shop/v2", "feed/1.9", "feed/1.10-b", "feed/1.10-a", "feed/.2.tmp")
    assert artifact_path(ServerConfig(repository=root, model="feed")).name == "1.10-b"
    assert artifact_path(ServerConfig(repository=root, model="shop")).name == "v2"
    with pytest.raises(ConfigError, match="version: expected one of 9, 10, v2, found '3'"):
        artifact_path(ServerConfig(repository=root, model="shop", version="3"))


def test_a_containers_cpu_quota_limits_the_slots(tmp_path: Path) -> None:
    quota, affinity = tmp_path / "cpu.max", len(os.sched_getaffinity(0))
    for text, cpus in (
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        (f"{affinity * 100_000 + 50_000} 100000\n", affinity),
        ("max 100000\n", affinity),
        ("", affinity),
    ):
        quota.write_text(text)
        assert available_cpus(quota) == cpus, text
    assert available_cpus(tmp_path / "absent") == affinity


def test_an_unclear_or_unknown_choice_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected at least one exported model"):
        artifact_path(ServerConfig(repository=tmp_path))
    root = repository(tmp_path, "feed/1", "shop/1")
    for changes, message in (
        ({}, "holds feed, shop; say which to serve"),
        ({"model": "shopp"}, "model: expected one of feed, shop, found 'shopp'"),
        ({"model": "shop", "version": "2"}, "version: expected one of 1, found '2'"),
    ):
        with pytest.raises(ConfigError, match=message):
            artifact_path(ServerConfig(repository=root, **changes))  # type: ignore[arg-type]


def test_receipt_keys_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with_file = ServerConfig(repository=tmp_path, receipt_key_file=file)
    file.write_text(f"2:{KEY}new\n1:{KEY}old\n")
    assert receipt_keys(with_file, {"KUNLUN_RECEIPT_KEY": KEY}) == ({2: f"{KEY}new".encode(), 1: f"{KEY}old".encode()}, 2)
    bare = ServerConfig(repository=tmp_path)
    assert receipt_keys(bare, {"KUNLUN_RECEIPT_KEY": f"{KEY}:x\n"}) == ({0: f"{KEY}:x".encode()}, 0)
    assert receipt_keys(bare, {}) is None
    assert random_receipt_keys() != random_receipt_keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("short", "found id 0 with 5 bytes"),
        (f"300:{KEY}", "found id 300"),
        (f"1:{KEY}\n1:{KEY}", "found id 1"),
        ("\n", "found nothing"),
    ],
)
def test_unusable_receipt_keys_are_refused_without_being_shown(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        receipt_keys(ServerConfig(repository=tmp_path), {"KUNLUN_RECEIPT_KEY": text})
    assert KEY not in str(caught.value)
