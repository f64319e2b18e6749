"""A small model to try a deployment with: synthetic log, trained and exported; the log's users and items into a store.

Run by deploy/compose.yaml before the servers start (`python -m loadtest.deployment.demo_model`), and by the clean root.
A repository that holds a model, whosever it is, is left alone, and so is the store then.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from loadtest.pipeline import Pipeline
from loadtest.processes import StageFailed
from model.artifact import list_versions


def build_demo_model(repository: Path, data: Path, seed: int = 0, store: str | None = None) -> bool:
    """The log into `data` (unless there is one) and `store`, the artifact into `repository`; raises `StageFailed`.

    False, and nothing is done, when `repository` holds a model: it comes last, so that all before it is done by then.
    """
    if repository.is_dir() and any(list_versions(repository).values()):
        return False
    with tempfile.TemporaryDirectory(prefix="kunlun-demo-model-") as directory:
        pipeline = Pipeline(Path(directory), seed=seed)
        if not (data / "schema.yaml").is_file():
            pipeline.stage("prepare", "preparing data", "--source", "synthetic", "--seed", str(seed), "--output", str(data))
        if store is not None:
            pipeline.stage("load", "loading the store", str(data), "--store", store)
        run = pipeline.path("run")
        arguments = (str(pipeline.config_path), "--data", str(data), "--output", run, "--seed", str(seed))
        pipeline.stage("train", "training", *arguments)
        pipeline.stage("export", "exporting", run, "--repository", str(repository))
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.deployment.demo_model", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="model repository")
    parser.add_argument("--data", type=Path, required=True, help="directory of the canonical log")
    parser.add_argument("--store", help="URL of the store to fill (default: none is)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        built = build_demo_model(arguments.repository, arguments.data, arguments.seed, arguments.store)
    except StageFailed as error:
        print(f"demo_model: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"repository": str(arguments.repository), "data": str(arguments.data), "built": built}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
