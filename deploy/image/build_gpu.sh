#!/bin/sh
# build_gpu.sh SOURCE PREFIX TORCH…: the environment of build.sh on an image with TensorRT, and libkunlun_tensorrt.so in it.
#
# The kernels are compiled by Triton for every GPU (kernels/aot), which needs torch for the time of the build alone.
set -eu
source=$1 prefix=$2
shift 2
export DEBIAN_FRONTEND=noninteractive
VENV_FLAGS=--system-site-packages sh "$source/deploy/image/build.sh" "$source" "$prefix" # NVIDIA's tensorrt module is the system's
apt-get install -y -qq --no-install-recommends cmake g++ make >/dev/null

compiler=$(mktemp -d)
trap 'rm -rf "$compiler"' EXIT
python3 -m venv "$compiler/venv"
"$compiler/venv/bin/pip" --python "$prefix/bin/python" install --quiet --no-deps -r "$source/deploy/image/requirements.gpu.txt"
# shellcheck disable=SC2068  # words, as pip takes them
"$compiler/venv/bin/pip" install --quiet $@ triton==3.7.1 'numpy<3' 'rich<16'
cd "$source"
PYTHONPATH=$source:$source/proto "$compiler/venv/bin/python" -m kernels.aot build
cmake -S kernels/tensorrt -B build/tensorrt -DCMAKE_BUILD_TYPE=Release -DTENSORRT_ROOT="${TENSORRT_ROOT:-/usr}"
cmake --build build/tensorrt --target kunlun_tensorrt
install -m 0644 build/tensorrt/libkunlun_tensorrt.so "$prefix/lib/"
