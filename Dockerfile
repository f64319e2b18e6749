# syntax=docker/dockerfile:1
# Images of the server (`cpu`, `gpu`) and of training (`train`): docker build --target cpu -t kunlun:0.1.0-cpu .
# `python -m loadtest.deployment.clean_root` executes the scripts of `cpu` without a container engine, and serves in the result.
# Base images are pinned by the name of a release; pin by digest with --build-arg DEBIAN=debian@sha256:….

ARG DEBIAN=debian:bookworm-20250520-slim
ARG TENSORRT=nvcr.io/nvidia/tensorrt:25.09-py3

FROM ${DEBIAN} AS build
COPY . /src
RUN sh /src/deploy/image/build.sh /src /opt/kunlun

# TORCH: as for `make install`, for example --build-arg TORCH='torch==2.13.0 --index-url …' for the CPU build.
FROM build AS build-train
ARG TORCH=torch==2.13.0
RUN sh /src/deploy/image/train.sh /opt/kunlun ${TORCH}

FROM ${DEBIAN} AS runtime
COPY deploy/image/runtime.sh /tmp/
RUN sh /tmp/runtime.sh && rm /tmp/runtime.sh
ENV PATH=/opt/kunlun/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

# Training and export, and the demo's model of deploy/compose.yaml.
FROM runtime AS train
COPY --from=build-train /opt/kunlun /opt/kunlun
USER 10001:10001
ENTRYPOINT ["kunlun"]

FROM ${TENSORRT} AS build-gpu
ARG TORCH=torch==2.13.0
COPY . /src
RUN sh /src/deploy/image/build_gpu.sh /src /opt/kunlun ${TORCH}

# The server on NVIDIA GPUs: TensorRT, the plugin with its kernels, no torch, and the CPU engine to fall back on.
FROM ${TENSORRT} AS gpu
COPY deploy/image/runtime.sh /tmp/
RUN sh /tmp/runtime.sh && rm /tmp/runtime.sh
COPY --from=build-gpu /opt/kunlun /opt/kunlun
ENV PATH=/opt/kunlun/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    KUNLUN_TENSORRT=/opt/kunlun/lib/libkunlun_tensorrt.so
USER 10001:10001
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s --retries=2 CMD ["kunlun", "health"]
ENTRYPOINT ["kunlun"]
CMD ["serve", "--host", "0.0.0.0", "--repository", "/models"]

# The server on CPUs: no torch, no compiler, no pip. Everything but /models, /var/lib/kunlun and /tmp may be read-only.
# Last, so that it is what `docker build .` makes.
FROM runtime AS cpu
COPY --from=build /opt/kunlun /opt/kunlun
USER 10001:10001
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s --retries=2 CMD ["kunlun", "health"]
ENTRYPOINT ["kunlun"]
CMD ["serve", "--host", "0.0.0.0", "--repository", "/models"]
