#!/bin/sh
# build.sh SOURCE PREFIX: the server's Python environment, from the checkout at SOURCE into PREFIX.
#
# The Dockerfile's stage `build` and `python -m loadtest.deployment.clean_root` execute this same script, as root, in a Debian
# with nothing in it. Packages are those of requirements.cpu.txt, by version and hash (docs/deploy.md says how it is written).
# PREFIX gets neither pip nor a compiler, and what a server on CPUs never loads is left out of it.
set -eu
source=$1 prefix=$2
here=$source/deploy/image
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 DEBIAN_FRONTEND=noninteractive

apt-get update -qq
apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null

python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet --require-hashes -r "$here/requirements.build.txt"
"$tools/venv/bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$tools" "$source"

python3 -m venv --without-pip ${VENV_FLAGS:-} "$prefix"
into="$tools/venv/bin/pip --python $prefix/bin/python install --quiet --no-deps --no-compile"
$into --require-hashes -r "$here/requirements.cpu.txt"
$into "$tools"/kunlun_serving-*.whl

site=$(echo "$prefix"/lib/python3*/site-packages)
sh "$here/leave_out.sh" "$site"
# The root file system is read-only, so bytecode is made here; that files have not changed need not be checked.
"$prefix/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$site"
