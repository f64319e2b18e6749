# syntax=docker/dockerfile:1
# Images of the server: `docker build --target cpu -t kunlun:cpu .`, and of the demo's model, `--target train`.
# `python -m loadtest.deployment.clean_root` executes the same scripts without a container engine, and serves in the result.

ARG DEBIAN=debian:bookworm-20250520-slim

FROM ${DEBIAN} AS build
COPY . /src
RUN sh /src/deploy/image/build.sh /src /opt/kunlun

FROM ${DEBIAN} AS runtime
COPY deploy/image/runtime.sh /tmp/
RUN sh /tmp/runtime.sh && rm /tmp/runtime.sh
ENV PATH=/opt/kunlun/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

# The server on CPUs: no torch, no compiler, no pip. Everything but /models, /var/lib/kunlun and /tmp may be read-only.
FROM runtime AS cpu
COPY --from=build /opt/kunlun /opt/kunlun
USER 10001:10001
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=2 CMD ["kunlun", "health"]
ENTRYPOINT ["kunlun"]
CMD ["serve", "--host", "0.0.0.0", "--repository", "/models"]
