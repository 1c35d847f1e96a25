# `make up` runs Groundswell and does the main job before your eyes; `make test` proves it. Both set up first.
.PHONY: up test ready tools check fix docs sim sim-long chaos soak fuzz bench-core bench-gateway bench-links bench-video mutate wheel clean help
.DEFAULT_GOAL := help

RUN := .venv/bin/python -m
seed ?=
only ?=
minutes ?= 60
jobs ?= 2

help:  ## Say what can be done here
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

up:  ## Set up, start a gateway with three nodes, do the main job, stay up until Ctrl-C
	@scripts/setup.sh run
	@exec .venv/bin/python scripts/foreground.py .venv/bin/groundswell up $(ARGS)

test: ready  ## Set up and run everything that CI runs
	@$(MAKE) --no-print-directory check
	$(RUN) pytest

ready:
	@scripts/setup.sh test

tools:
	@scripts/setup.sh dev

check: tools  ## Style, types, import rules
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	.venv/bin/lint-imports --no-logo

fix: tools  ## Format, and mend what ruff can mend
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

docs: tools  ## Build the documentation into site/
	$(RUN) mkdocs build --strict

sim:  ## 200 seeds of the made-up world; `make sim seed=17` replays one with its log
	@scripts/setup.sh run
	$(RUN) groundswell.sim $(if $(seed),--seed $(seed) --log,--seeds 0..200)

sim-long:  ## 200,000 seeds
	@scripts/setup.sh run
	$(RUN) groundswell.sim --seeds 0..200000 --jobs 2

chaos: ready  ## 200 streams while engines are killed, stopped and hung; gateways killed with accepted jobs; crowds that read slowly or leave
	$(RUN) pytest -s tests/e2e/test_chaos.py tests/e2e/test_crowds.py --streams 200 --jobs 100 --readers 500 --disconnects 1000

soak: ready  ## An hour at 60 % load while engines die every 20 s: what grows, what stays, what breaks; `minutes=10` is shorter
	$(RUN) pytest -s tests/e2e/test_soak.py --soak-minutes $(minutes)

fuzz: ready  ## 200,000 requests that mean harm, and a minute for each parser; `seed=17` makes others
	$(RUN) pytest -s tests/e2e/test_fuzz.py tests/e2e/test_openapi.py tests/fuzz --inputs 200000 --fuzz-seconds 60 $(if $(seed),--seed $(seed))

bench-core: tools  ## Cost of a decision with 10, 1,000 and 10,000 nodes; memory of a node and an open stream
	$(RUN) bench.core

bench-gateway: ready  ## Speed of the relay beside others on one core; PEERS=nginx,smg ROUNDS=1 MEASURES=requests, ARGS=--quick
	$(RUN) bench.gateway $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(MEASURES),--measures $(MEASURES)) \
	  $(if $(filter undefined,$(origin PEERS)),,--peers '$(PEERS)') $(ARGS)

bench-links: ready  ## What the network costs: the same engines by URL and behind a node over NATS; 100 nodes lose their server
	$(RUN) bench.links $(ARGS)

bench-video: ready  ## CPU cost of a segmented, spread transcode against one ffmpeg
	$(RUN) bench.video

mutate:  ## How many bugs planted in core/ its tests notice; goes on where it was stopped
	@scripts/setup.sh mutate
	.venv-mutate/bin/python scripts/mutation.py --jobs $(jobs) $(only)

wheel: tools  ## Build the wheel into dist/
	$(RUN) build --wheel

clean:  ## Remove what was built or installed here
	rm -rf .venv .venv-* .llama dist site mutants tests/e2e/js/node_modules
