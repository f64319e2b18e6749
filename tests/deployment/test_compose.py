"""deploy/compose.yaml without a container engine: its schema, and that what it names is there and fits together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from shell_blocks import commands

from loadtest.deployment.dockerfile import read_image
from serving.config import load_config, receipt_keys

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose.yaml"
DEPLOY = COMPOSE.parent


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text()


def test_it_is_what_the_schema_of_compose_asks_for() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    if not checker.exists():
        pytest.skip("not verified here: check-jsonschema is not installed (make deploy-check installs it)")
    arguments = [str(checker), "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_are_pinned_and_targets_exist(services: dict[str, dict[str, Any]]) -> None:
    built = {service["image"]: service["build"]["target"] for service in services.values() if "build" in service}
    for name, service in services.items():
        _, _, tag = service["image"].partition(":")
        assert tag, name
        assert tag != "latest", name
    assert {tag.rpartition("-")[2] for tag in built} == set(built.values())
    for target in built.values():
        read_image(target)


def test_mounts_exist_and_those_of_rankers_are_read_only(services: dict[str, dict[str, Any]]) -> None:
    named = yaml.safe_load(COMPOSE.read_text())["volumes"]
    for name, service in services.items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in named, f"{name}: {mount}"
    assert all(mount.endswith(":ro") for mount in services["ranker"]["volumes"])
    assert services["ranker"]["read_only"]
    assert services["ranker"]["cap_drop"] == ["ALL"]


def test_what_is_written_is_written_where_it_can_be(services: dict[str, dict[str, Any]]) -> None:
    writable = {
        name: [Path(mount.split(":")[1]) for mount in service.get("volumes", []) if not mount.endswith(":ro")]
        for name, service in services.items()
    }
    command = services["demo-model"]["command"]
    data, repository = (Path(command[command.index(flag) + 1]) for flag in ("--data", "--repository"))
    # A log is made beside its place and renamed into it: neither works where the place itself is mounted.
    assert set(writable["demo-model"]) & set(data.parents)
    assert set(writable["demo-model"]) & {repository, *repository.parents}
    cache = load_config(DEPLOY / "compose" / "server.yaml", {}, {}).engine_cache
    assert cache is not None
    scratch = Path(services["compile"]["environment"]["TMPDIR"])
    assert {scratch} <= set(writable["compile"]) & set(cache.parents), "engines are larger than a tmpfs may be"
    engines = [mount.split(":")[0] for mount in services["compile"]["volumes"] if mount.split(":")[1] == str(scratch)]
    assert f"{engines[0]}:{scratch}:ro" in services["ranker"]["volumes"]


def test_slow_starts_are_waited_for(services: dict[str, dict[str, Any]]) -> None:
    for target in ("cpu", "gpu"):
        assert read_image(target).health_start_s >= 300
    config = load_config(DEPLOY / "compose" / "server.yaml", {}, {})
    assert config.slots == 1, "rankers that share CPUs must not take all of them each"


def test_nothing_listens_beyond_this_machine_unless_asked(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) >= 4
    assert all(port.startswith(("127.0.0.1:", "${KUNLUN_BIND:-127.0.0.1}:")) for port in published)


def test_whoever_is_waited_for_can_become_what_is_waited_for(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            match wanted["condition"]:
                case "service_healthy":
                    # The image's own health check, or one written here.
                    own = services[other]["image"].startswith("kunlun:") and read_image("cpu").health
                    assert own or "healthcheck" in services[other], f"{name} waits for {other}"
                case "service_completed_successfully":
                    assert services[other]["restart"] == "no", f"{name} waits for {other}"


def test_the_rankers_configuration_is_one_that_the_server_takes(services: dict[str, dict[str, Any]]) -> None:
    environment = {name: value.replace("${KUNLUN_RECEIPT_KEY:-", "").rstrip("}") for name, value in environment_of(services)}
    config = load_config(DEPLOY / "compose" / "server.yaml", {}, environment)
    assert config.store == "redis://store:6379"
    assert receipt_keys(config, environment) is not None
    assert config.host == "0.0.0.0"
    grace_s = float(services["ranker"]["stop_grace_period"].rstrip("s"))
    assert grace_s > config.shutdown_delay_s + config.shutdown_grace_s
    assert services["ranker"]["deploy"]["replicas"] == 2


def test_the_commands_of_the_page_fit(services: dict[str, dict[str, Any]]) -> None:
    found = commands((DEPLOY.parent / "docs" / "deploy.md").read_text(), "docker")
    assert len(found) >= 5
    for words in found:
        assert words[:4] == ["docker", "compose", "-f", "deploy/compose.yaml"]
        verb, rest = words[4], words[5:]
        if verb == "up":
            assert {word for word in rest if not word.startswith("-")} <= set(services)
            continue
        assert verb == "run", "nothing can be copied into what rankers mount"
        at = next(i for i, word in enumerate(rest) if word in services)
        name, options, arguments = rest[at], rest[:at], rest[at + 1 :]
        assert "--no-deps" in options, "the demo need not run for it"
        if "cp" in options:
            mounts = [mount.split(":")[1] for mount in services[name]["volumes"] if not mount.endswith(":ro")]
            assert arguments[-1] in mounts
            served = [mount.split(":")[0] for mount in services["ranker"]["volumes"]]
            assert [m.split(":")[0] for m in services[name]["volumes"] if m.split(":")[1] == arguments[-1]] <= served
        else:
            assert arguments[0] == "load"
            assert arguments[-1] == services["ranker"]["environment"]["KUNLUN_STORE"]


def environment_of(services: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return list(services["ranker"]["environment"].items())


def test_envoy_prometheus_and_grafana_look_for_what_is_there(services: dict[str, dict[str, Any]]) -> None:
    config = load_config(DEPLOY / "compose" / "server.yaml", {}, {})
    envoy = yaml.safe_load(text_of("envoy/envoy.yaml"))["static_resources"]
    addresses = {
        (where["address"], where["port_value"])
        for cluster in envoy["clusters"]
        for group in cluster["load_assignment"]["endpoints"]
        for where in [one["endpoint"]["address"]["socket_address"] for one in group["lb_endpoints"]]
        if where["address"] != "127.0.0.1"
    }
    assert addresses == {("ranker", config.port)}
    listening = {listener["address"]["socket_address"]["port_value"] for listener in envoy["listeners"]}
    assert {int(port.split(":")[-1]) for port in services["envoy"]["ports"]} <= listening
    rankers, proxy = yaml.safe_load(text_of("prometheus/prometheus.yaml"))["scrape_configs"]
    (lookup,) = rankers["dns_sd_configs"]
    assert (lookup["names"], lookup["port"]) == (["ranker"], config.metrics_port)
    (target,) = proxy["static_configs"][0]["targets"]
    assert target.split(":")[0] in services
    assert int(target.split(":")[1]) in listening
    (source,) = yaml.safe_load(text_of("grafana/provisioning/datasources/prometheus.yaml"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load(text_of("grafana/provisioning/dashboards/kunlun.yaml"))["providers"]
    places = [mount.split(":")[1] for mount in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in places
