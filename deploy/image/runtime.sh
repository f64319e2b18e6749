#!/bin/sh
# runtime.sh: what the server needs around its Python environment: an interpreter and a user who owns nothing.
#
# The Dockerfile's stage `runtime` and `python -m loadtest.deployment.clean_root` execute this same script, as root.
set -eu
export DEBIAN_FRONTEND=noninteractive
if ! command -v python3 >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends python3 >/dev/null
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log
fi
groupadd --gid 10001 kunlun
useradd --uid 10001 --gid kunlun --no-create-home --home-dir /tmp --shell /usr/sbin/nologin kunlun
install -d -o kunlun -g kunlun /models /var/lib/kunlun
