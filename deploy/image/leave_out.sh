#!/bin/sh
# leave_out.sh SITE_PACKAGES: remove what a server on CPUs never loads: plugins for other devices, readers of other model
# formats, network file systems, headers, tests. `kunlun compile`, `serve`, `load` and `rank` run without them (loadtest.deployment.clean_root).
set -eu
cd "$1"
for reader in gguf jax paddle pytorch tensorflow tensorflow_lite; do
    rm -f openvino/libs/libopenvino_"$reader"_frontend.so*
done
for plugin in auto auto_batch hetero intel_gpu intel_npu; do
    rm -f openvino/libs/libopenvino_"$plugin"_plugin.so
done
rm -rf openvino/libs/cache.json openvino/include openvino/cmake # the first holds kernels for GPUs
rm -rf pyarrow/include pyarrow/src pyarrow/tests
rm -f pyarrow/libarrow_flight.so* pyarrow/libarrow_s3.so* pyarrow/_flight.*.so pyarrow/_s3fs.*.so
rm -rf numpy/f2py
find . -type d -name tests -prune -exec rm -rf {} +
