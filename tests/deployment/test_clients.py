"""docs/clients.md, executed: Python, the commands, reflection as grpcurl uses it, and Node."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from protocol_server import ProtocolServer, protocol_server, shop_schema
from shell_blocks import commands

from kunlun.cli import main

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "clients.md"
ADDRESS = "localhost:50051"


@pytest.fixture
def server() -> Iterator[ProtocolServer]:
    with protocol_server(shop_schema(request_columns=[], value="p_click + p_like")) as running:
        yield running


def test_the_python_example_runs(server: ProtocolServer, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    patient = code.replace(ADDRESS, server.address).replace("timeout_s=1.0", "timeout_s=30")
    exec(compile(patient, str(PAGE), "exec"), {})
    assert "INVALID_ARGUMENT [('candidates.keys" in capsys.readouterr().out


def test_the_commands_run(server: ProtocolServer, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands(PAGE.read_text(), "kunlun")
    assert [command[1] for command in found] == ["rank", "health"]
    for command in found:
        assert main([server.address if word == ADDRESS else word for word in command[1:]]) == 0
    assert "is serving" in capsys.readouterr().out


def test_a_call_can_be_made_of_what_reflection_says_alone(server: ProtocolServer) -> None:
    """As grpcurl does: descriptors from the server, the request from JSON."""
    pool = descriptor_pool.DescriptorPool()
    with grpc.insecure_channel(server.address) as channel:
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="kunlun.v1.Ranker")
        (reply,) = ask(iter([request]), timeout=30)
        files = [descriptor_pb2.FileDescriptorProto.FromString(f) for f in reply.file_descriptor_response.file_descriptor_proto]
        for file in sorted(files, key=lambda file: len(file.dependency)):
            pool.Add(file)
        method = pool.FindServiceByName("kunlun.v1.Ranker").FindMethodByName("Rank")
        text = next(
            command[command.index("-d") + 1]
            for command in commands(PAGE.read_text(), "grpcurl")
            if command[-1].endswith("/Rank")
        )
        message = json_format.Parse(text, message_factory.GetMessageClass(method.input_type)())
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        answer = json_format.MessageToDict(call(message, timeout=30))
    assert sorted(answer["items"]["keys"]) == ["coffee", "tea"]
    assert answer["rung"] == "RUNG_FULL"


def test_the_grpcurl_commands_run(server: ProtocolServer) -> None:
    program = shutil.which("grpcurl") or str(ROOT / "build" / "tools" / "grpcurl")
    if not Path(program).exists():
        pytest.skip("not verified here: grpcurl is not installed")
    found = commands(PAGE.read_text(), "grpcurl")
    assert len(found) == 5
    for command in found:
        arguments = [server.address if word == ADDRESS else word for word in command[1:]]
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def node_example(request: pytest.FixtureRequest) -> Path:
    """The example with its packages installed, and proto/ where it looks for it."""
    if shutil.which("npm") is None:
        pytest.skip("not verified here: node and npm are not installed")
    assert request.config.cache is not None
    home = request.config.cache.mkdir("kunlun-node")
    place = home / "examples" / "node"
    place.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "rank.mjs"):
        shutil.copyfile(ROOT / "examples" / "node" / name, place / name)
    shutil.copytree(ROOT / "proto", home / "proto", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    installed = subprocess.run(["npm", "ci", "--silent"], cwd=place, capture_output=True, text=True, check=False, timeout=300)
    if installed.returncode != 0:
        pytest.skip(f"not verified here: npm could not install @grpc/grpc-js: {installed.stderr.strip()[-200:]}")
    return place


def ranked_by_node(place: Path, address: str, *items: str) -> dict[str, Any]:
    command = ["node", "rank.mjs", address, "ann", *items]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_the_node_example_runs(server: ProtocolServer, node_example: Path) -> None:
    figures = ranked_by_node(node_example, server.address, "tea", "coffee", "cocoa")
    assert sorted(figures["before"]) == sorted(figures["after"]) == ["cocoa", "coffee", "tea"]
    assert (figures["rung"], figures["history_length"], figures["model"]) == ("RUNG_FULL", 1, "shop 7")


def test_node_ranks_one_item_whose_id_is_no_number_of_javascript(node_example: Path) -> None:
    item = str(2**53 + 1)
    schema = shop_schema(request_columns=[], value="p_click + p_like", item={"id_type": "int64", "table": "item"})
    with protocol_server(schema) as running:
        figures = ranked_by_node(node_example, running.address, item)
    assert (figures["before"], figures["clicked"], figures["after"]) == ([item], item, [item])
    assert figures["history_length"] == 1
