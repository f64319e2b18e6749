"""The chart, rendered by the real helm: valid Kubernetes in every profile, and the promises that no schema holds."""

from __future__ import annotations

import hashlib
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from shell_blocks import commands

from loadtest.deployment.chart import (
    CHART,
    HELM_SHA256,
    KUBERNETES,
    PROFILES,
    ROOT,
    InvalidManifest,
    Profile,
    UnexpectedProgram,
    find_helm,
    lint,
    put_program,
    render,
    validate,
)
from serving.config import ServerConfig, load_config

Manifest = dict[str, Any]
ENGINES = get_args(ServerConfig.model_fields["engine"].annotation)


@pytest.fixture(scope="module")
def helm() -> str:
    found = find_helm()
    if found is None:
        # No package of Debian or PyPI has it; `make deploy-check` fetches it.
        pytest.skip("not verified here: helm is not installed (make deploy-check fetches it)")
    pytest.importorskip(
        "kubernetes_validate", reason="not verified here: kubernetes-validate is not installed (make deploy-check)"
    )
    return found


@cache
def rendered(helm: str, profile: Profile) -> dict[str, Manifest]:
    """By kind; every kind comes once."""
    manifests = render(helm, profile)
    found = {manifest["kind"]: manifest for manifest in manifests}
    assert len(found) == len(manifests)
    return found


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_is_linted_and_valid_in_every_version(helm: str, name: str) -> None:
    lint(helm, PROFILES[name])
    manifests = list(rendered(helm, PROFILES[name]).values())
    for version in KUBERNETES:
        validate(manifests, version)


@pytest.mark.parametrize("name", sorted(name for name in PROFILES if name != "gpu" or "tensorrt" in ENGINES))
def test_the_configuration_is_one_that_the_server_takes(helm: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(rendered(helm, PROFILES[name])["ConfigMap"]["data"]["server.yaml"])
    config = load_config(file, {}, {"KUNLUN_STORE": "redis://store:6379"})
    pod = rendered(helm, PROFILES[name])["Deployment"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert ports == {"grpc": config.port, "metrics": config.metrics_port}
    mounts = [Path(mount["mountPath"]) for mount in server["volumeMounts"]]
    assert config.receipt_key_file is not None
    assert config.engine_cache is not None
    files = [config.repository, config.receipt_key_file, config.engine_cache, Path("/etc/kunlun/server.yaml")]
    files += [] if config.tls is None else [config.tls.certificate, config.tls.key]
    assert all(any(mount in (path, *path.parents) for mount in mounts) for path in files), "every path of it is mounted"
    if config.front_end == "native":
        assert not config.max_connection_age_s, "which it refuses"
    drain_s = config.shutdown_delay_s + config.shutdown_grace_s + int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > drain_s


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_pod_has_the_room_and_the_time_to_compile(helm: str, name: str) -> None:
    deployment = rendered(helm, PROFILES[name])["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    (compile_,), (server,) = pod["initContainers"], pod["containers"]
    (scratch,) = (variable["value"] for variable in compile_["env"] if variable["name"] == "TMPDIR")
    (volume,) = (mount["name"] for mount in compile_["volumeMounts"] if mount["mountPath"] == scratch)
    (source,) = (found["emptyDir"] for found in pod["volumes"] if found["name"] == volume)
    assert source.get("medium") != "Memory", "an engine is as large as its model"
    startup_s = server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"]
    assert deployment["progressDeadlineSeconds"] >= startup_s + 600


def test_the_port_of_metrics_is_the_one_that_is_scraped(helm: str) -> None:
    for name, port in (("cpu", "9464"), ("native", "9000")):
        annotations = rendered(helm, PROFILES[name])["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        assert (annotations["prometheus.io/scrape"], annotations["prometheus.io/port"]) == ("true", port)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_pods_may_do_nothing_that_they_need_not(helm: str, name: str) -> None:
    pod = rendered(helm, PROFILES[name])["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    for container in [*pod["initContainers"], *pod["containers"]]:
        own = container["securityContext"]
        assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False)
        assert own["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["requests"] == container["resources"]["limits"], "class Guaranteed"
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == names
    policy = rendered(helm, PROFILES[name])["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 6379}


def test_the_autoscaler_follows_a_metric_that_the_server_exports(helm: str) -> None:
    from serving.metrics.serving_metrics import ServingMetrics

    found = rendered(helm, PROFILES["cpu"])
    (metric,) = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert ServingMetrics().registry.get_sample_value(metric["pods"]["metric"]["name"]) == 0
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])
    assert "replicas" not in found["Deployment"]["spec"], "an upgrade must not undo the autoscaler"


def test_a_canary_joins_the_pool_and_owns_its_pods(helm: str) -> None:
    live, canary = rendered(helm, PROFILES["cpu"]), rendered(helm, PROFILES["canary"])
    assert set(canary) == {"Deployment", "ConfigMap", "NetworkPolicy", "ServiceAccount"}
    labels = canary["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert live["Service"]["spec"]["selector"].items() <= labels.items()
    own = live["Deployment"]["spec"]["selector"]["matchLabels"]
    assert not own.items() <= labels.items()
    assert yaml.safe_load(canary["ConfigMap"]["data"]["server.yaml"])["version"] == "20260131T120000Z"
    names = [manifest["metadata"]["name"] for found in (live, canary) for manifest in found.values()]
    assert set(names) == {"kunlun", "kunlun-canary"}


def test_behind_tls_the_probes_are_commands_that_bring_certificates(helm: str) -> None:
    (server,) = rendered(helm, PROFILES["tls"])["Deployment"]["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = server[probe]["exec"]["command"]
        assert command[:2] == ["kunlun", "health"]
        assert {flag.split("=")[0] for flag in command[2:]} >= {"--tls-ca", "--tls-certificate", "--tls-key", "--tls-name"}
    pod = rendered(helm, PROFILES["tls"])["Deployment"]["spec"]["template"]["spec"]
    assert keys_of(pod, "tls") == {"tls.crt", "tls.key", "ca.crt"}
    (plain,) = rendered(helm, PROFILES["cpu"])["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert plain["readinessProbe"]["grpc"] == {"port": 50051}


def test_probes_may_have_certificates_of_their_own(helm: str) -> None:
    pod = rendered(helm, PROFILES["probe"])["Deployment"]["spec"]["template"]["spec"]
    assert (keys_of(pod, "tls"), keys_of(pod, "probe")) == ({"tls.crt", "tls.key"}, {"ca.crt"})
    (server,) = pod["containers"]
    assert "--tls-ca=/etc/kunlun/probe/ca.crt" in server["readinessProbe"]["exec"]["command"]
    assert {"name": "probe", "mountPath": "/etc/kunlun/probe", "readOnly": True} in server["volumeMounts"]


def keys_of(pod: Manifest, volume: str) -> set[str]:
    """What a volume takes of its Secret."""
    (secret,) = (found["secret"] for found in pod["volumes"] if found["name"] == volume)
    return {item["key"] for item in secret["items"]}


def test_helm_takes_the_commands_that_are_written_down(helm: str) -> None:
    comment = "\n".join(line.removeprefix("#") for line in (CHART / "values-canary.yaml").read_text().splitlines()[:6])
    first = comment.index("  helm")
    texts = [(ROOT / "docs" / name).read_text() for name in ("deploy.md", "operate.md")]
    texts.append(f"```bash\n{comment[first : comment.index('pool:')]}```")
    found = [words for text in texts for words in commands(text, "helm")]
    assert [words[1] for words in found] == ["upgrade", "upgrade", "rollback", "upgrade"]
    for words in found:
        assert words[words.index("-n") + 1] == "ranking", "the namespace of docs/deploy.md"
        known = subprocess.run([helm, words[1], "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
        assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", known))
        if "--install" in words:
            flags = [word for word in words[2:] if word not in ("--install", "--wait")]
            subprocess.run([helm, "template", *flags], cwd=ROOT, capture_output=True, check=True, timeout=60)
        else:
            assert {"--wait", "--timeout"} <= set(words)
            assert words[1] == "rollback" or "--reset-then-reuse-values" in words, "else what was set at first is lost"


def test_a_fetched_program_is_the_pinned_one_or_is_not_there(tmp_path: Path) -> None:
    target = tmp_path / "tools" / "helm"
    with pytest.raises(UnexpectedProgram, match=f"helm: expected the program with SHA-256 {HELM_SHA256}, found "):
        put_program(b"another", HELM_SHA256, target)
    assert not target.exists()
    put_program(b"#!/bin/sh\necho it", hashlib.sha256(b"#!/bin/sh\necho it").hexdigest(), target)
    assert subprocess.run([target], capture_output=True, text=True, check=True, timeout=60).stdout == "it\n"
    assert [file.name for file in target.parent.iterdir()] == ["helm"]


def test_mistakes_in_values_are_refused(helm: str) -> None:
    for setting, text in (
        ("autoscaling.minReplica=3", "minReplica"),
        ("image.target=tpu", "target"),
        ("config.port=50052", "config.port: expected service.port in its place, which the pod follows, found 50052"),
        ("config.metrics_port=9000", "config.metrics_port: expected service.metricsPort"),
        ("config.tls.key=k", "config.tls: expected tls.secretName"),
        ("secret.create=true", "secret.storeUrl: expected the URL of the store, found nothing"),
    ):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            render(helm, Profile("kunlun", (), (setting,)))
        assert text in caught.value.stdout


def test_an_unknown_field_is_refused(helm: str) -> None:
    manifest = {**rendered(helm, PROFILES["cpu"])["Service"], "spce": {}}
    with pytest.raises(InvalidManifest, match=r"Service kunlun: .*spce"):
        validate([manifest], KUBERNETES[0])


def test_every_value_is_explained_and_in_the_schema() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())["properties"]
    assert set(yaml.safe_load("\n".join(lines))) == set(schema) - {"global"}
    for file in CHART.glob("values-*.yaml"):
        assert set(yaml.safe_load(file.read_text())) <= set(schema)
        assert file.read_text().startswith("# ")
