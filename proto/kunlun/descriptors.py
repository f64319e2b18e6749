"""`python -m kunlun.descriptors FILE`: the API's descriptor set, for tools that speak it without stubs (JSON in Envoy, say)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from kunlun.v1 import events_pb2, features_pb2, feedback_pb2, ranker_pb2


def descriptor_set() -> FileDescriptorSet:
    """All files of kunlun.v1, each after those that it imports."""
    found: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        for imported in file.dependencies:
            add(imported)
        found.setdefault(file.name, file)

    for module in (ranker_pb2, events_pb2, features_pb2, feedback_pb2):
        add(module.DESCRIPTOR)
    files = FileDescriptorSet()
    for file in found.values():
        file.CopyToProto(files.file.add())
    return files


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kunlun.descriptors", description="Write the API's descriptor set.")
    parser.add_argument("file", type=Path, help="where to, kunlun.pb say")
    parser.parse_args().file.write_bytes(descriptor_set().SerializeToString())
    return 0


if __name__ == "__main__":
    sys.exit(main())
