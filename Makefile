# kunlun: `make demo` and `make test` create what they need on a fresh machine.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH ?= torch==2.13.0
TENSORRT_STUBS ?= tensorrt-stubs==10.13.0.35.1

.PHONY: help demo test balancer-check test-native fuzz lint proto bench store-check feedback-check locust-check deploy-check quality ablations gpu-check kernels kernels-check trt-check system-deps install clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## create the virtual environment with everything for development

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(TENSORRT_STUBS)  # without TensorRT, which PyPI does not have
	touch $@

demo: $(STAMP) ## train, export, compile, serve and rank; DATA=path takes a Metarank-format log
	$(BIN)/kunlun demo $(if $(DATA),--data '$(DATA)')

test: $(STAMP) lint ## lint, then every test, fast ones first
	$(BIN)/python -m pytest

test-native: $(STAMP) ## the API and server tests once more on the native front end
	KUNLUN_TEST_FRONT_END=native $(BIN)/python -m pytest tests/proto tests/serving/protocol tests/serving/test_server.py

fuzz: $(STAMP) ## the property tests with new random examples, ten times over
	for round in {1..10}; do $(BIN)/python -m pytest -m hypothesis --hypothesis-profile=random || exit 1; done

lint: $(STAMP) ## ruff, mypy --strict, buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint

proto: $(STAMP) ## regenerate the stubs of kunlun.v1 from proto/
	cd proto && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. kunlun/v1/*.proto

bench: $(STAMP) ## scoreboard rows: make bench ROW=S1
	$(BIN)/python -m loadtest.scoreboard $(if $(ROW),--row $(ROW))

store-check: $(STAMP) ## near-cache hit rate, read latency, append cost, load rate, skew; DATA=path takes a Metarank-format log
	$(BIN)/python -m loadtest.checks.store $(if $(DATA),--data '$(DATA)')

quality: $(STAMP) ## NE against its targets: on a Metarank-format log (DATA=path), or against the truth of synthetic data; FAST=1
	$(BIN)/python -m loadtest.checks.quality $(if $(DATA),--data '$(DATA)') $(if $(FAST),--fast)

feedback-check: $(STAMP) ## a fleet's online NE and PromQL rules, canary verdicts, drift, cost; DATA=path takes a Metarank-format log
	$(BIN)/python -m loadtest.checks.feedback $(if $(DATA),--data '$(DATA)' --workdir runs/feedback)

gpu-check: $(STAMP) ## on a machine with a GPU: parity, races, memory and speed of every kernel, then of the served TensorRT engine; MINUTES=15
	mkdir -p runs/gpu_check
	$(BIN)/python -m kernels.bench --minutes $(or $(MINUTES),15) | tee runs/gpu_check/kernels.json
	$(BIN)/python -m loadtest.checks.tensorrt_gpu --kernels runs/gpu_check/kernels.json $(if $(DATA),--data '$(DATA)')

ablations: $(STAMP) ## NE, FLOPs and speed of variants beside the paper's; FAST=1, DATA=path, PAGE=1 writes docs/ablations.md
	$(BIN)/python -m loadtest.checks.ablations $(if $(DATA),--data '$(DATA)') $(if $(FAST),--fast) $(if $(PAGE),--page)

kernels: $(STAMP) ## compile the kernels for every GPU and link build/kernels/libkunlun_kernels.so (no GPU, no CUDA toolkit)
	$(BIN)/python -m kernels.aot build

kernels-check: $(STAMP) ## all about the kernels that needs no GPU: interpreter tests, every cubin, static report, launcher library
	$(BIN)/python -m kernels.aot check --cpu loadtest.cpu_graph

trt-check: $(STAMP) ## TensorRT without a GPU: plugin, parser, plans of tiny, small, ref-m (needs TENSORRT_ROOT, extra trt-check); PAGE=1
	$(BIN)/python -m loadtest.checks.tensorrt $(if $(PAGE),--page)

balancer-check: $(STAMP) ## replicas behind Envoy and HAProxy: restarted, killed, silent, slow, new, users in place; PAGE=1 writes docs/balancing.md
	KUNLUN_TEST_BALANCING=1 $(BIN)/python -m pytest tests/loadtest/test_balancer.py
	$(BIN)/python -m loadtest.checks.balancer $(if $(PAGE),--page)

locust-check: $(STAMP) ## Locust against the open-loop harness and the server's own counts: latencies, online NE, shapes, capacity
	$(BIN)/python -m loadtest.checks.locust_load

deploy-check: $(STAMP) ## all of deployment: images in a clean root (needs root), chart, clients, balancers, Locust; PAGE=1, ONLY=part
	$(BIN)/python -c 'import kubernetes_validate' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check --editable '.[deploy]'
	$(if $(filter-out clean_root,$(ONLY)),:,false) || command -v debootstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap; }
	$(BIN)/python -m loadtest.checks.deploy $(if $(PAGE),--page) $(if $(ONLY),--only $(ONLY))

system-deps: ## the few Debian packages that some tests use (needs root)
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server prometheus haproxy g++

clean: ## remove the virtual environment and everything generated
	rm -rf $(VENV) runs dist build
