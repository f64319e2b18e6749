#!/bin/sh
# train.sh PREFIX TORCH…: torch (pip's words for it, such as `torch==2.13.0 --index-url …`) and what training needs, into PREFIX.
set -eu
prefix=$1
shift
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
python3 -m venv "$tools/venv"
into="$tools/venv/bin/pip --python $prefix/bin/python install --quiet"
# shellcheck disable=SC2086,SC2068  # words, as pip takes them
$into $@
$into --no-deps -r "$(dirname "$0")/requirements.train.txt"
