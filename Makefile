# isoflop: `make demo` and `make test` set everything up by themselves, in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test test-all lint proto up train lock clean step-labels bench-embedded bench-headlines bench-scaling
.PHONY: bench-prm bench-answers bench-difficulty bench-overhead bench-planner bench-price bench-replay bench-confidence
.PHONY: bench-deep bench-speculative bench-bounds bench-recorded-search bench-faults bench-soak

demo: .venv/run.stamp  ## 30 held-out problems, live
	@$(BIN)/isoflop demo --json build/demo.json

up: .venv/run.stamp  ## the suite in one process
	$(BIN)/isoflop up

test: .venv/dev.stamp  ## unit tests
	$(BIN)/pytest -q -m "not cluster"

test-all: .venv/dev.stamp  ## unit and whole-system tests
	$(BIN)/pytest -q

lint: .venv/dev.stamp  ## ruff, strict types, buf, generated code current
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code
	$(BIN)/python protos/generate.py --check

proto: .venv/dev.stamp  ## stubs in client/ from protos/
	$(BIN)/python protos/generate.py

train: .venv/train.stamp  ## the embedded models, their verifier and profile, from nothing
	$(BIN)/python -m training.train
	@$(MAKE) --no-print-directory step-labels
	$(BIN)/isoflop train-prm --labels $(PRM)/judged.jsonl --output models/abacus-prm $(LIKE_ABACUS)
	$(BIN)/isoflop calibrate --queries training/problems/calibration.jsonl --first 480 --verifiers abacus-prm --yes \
		--recording build/calibration.recording.jsonl --output models/profile.json --estimator models/difficulty.json

PRM = build/prm
LIKE_ABACUS = --tokenizer training/tokenizer.json --init build/training/abacus-m.pt \
	--chat-template "$$(cat training/prompt.jinja)" --epochs 4

JUDGED = $(BIN)/python -m training.judged --output $(PRM)/judged.jsonl

step-labels: .venv/dev.stamp  ## solutions of the embedded models, judged line by line
	$(JUDGED) --models abacus-m --problems 6500 --seed 4
	$(JUDGED) --models abacus-m --problems 6500 --seed 5
	$(JUDGED) --models abacus-s --problems 3500 --seed 6
	$(JUDGED) --models abacus-s --problems 3500 --seed 7

bench-prm: .venv/train.stamp step-labels  ## verifiers by step labels, by roll-outs, by both, on held-out solutions
	$(BIN)/python -m training.judged --split heldout --models abacus-s,abacus-m,abacus-l --chains 4 --problems 200 \
		--output $(PRM)/heldout.jsonl
	$(BIN)/python -m training.judged --models none --problems 800 --seed 3 --output $(PRM)/problems.jsonl
	$(BIN)/isoflop label-steps --problems $(PRM)/problems.jsonl --model abacus-m --chains 2 --rollouts 4 \
		--output $(PRM)/rollouts.jsonl
	$(BIN)/python -m benchmarks.prm --labels $(PRM)/judged.jsonl $(PRM)/rollouts.jsonl --heldout $(PRM)/heldout.jsonl \
		$(LIKE_ABACUS)

bench-embedded: .venv/dev.stamp  ## accuracy against FLOPs on held-out problems
	$(BIN)/python -m benchmarks.embedded

bench-headlines: .venv/dev.stamp  ## what more compute buys, on held-out problems
	$(BIN)/python -m benchmarks.headlines
	@$(MAKE) --no-print-directory bench-deep

bench-scaling: .venv/dev.stamp  ## laws of accuracy over samples, from what is stored and recorded
	$(BIN)/python -m benchmarks.scaling

bench-answers: .venv/dev.stamp  ## reading and comparing answers, on recorded texts in ../shared
	$(BIN)/python -m benchmarks.answers

bench-difficulty: .venv/dev.stamp  ## difficulty from text, on held-out queries and recordings in ../shared
	$(BIN)/python -m benchmarks.difficulty

bench-planner: .venv/dev.stamp  ## how long a decision takes
	$(BIN)/python -m benchmarks.planner

bench-price: .venv/dev.stamp  ## a budget that lasts while difficulty shifts
	$(BIN)/python -m benchmarks.price

bench-confidence: .venv/dev.stamp  ## how right confidence is, on 2,520 problems that nothing was made from
	$(BIN)/python -m benchmarks.confidence

bench-deep: .venv/dev.stamp  ## what searches, long chains and revisions bring, beside samples at equal FLOPs
	$(BIN)/python -m benchmarks.deep

bench-bounds: .venv/dev.stamp  ## memory and tasks of 256 samples and of trees of 1,000 nodes
	$(BIN)/python -m benchmarks.bounds

bench-faults: .venv/dev.stamp  ## queries when parts fail, too many come, or callers hang up
	$(BIN)/python -m benchmarks.faults

bench-soak: MINUTES ?= 10
bench-soak: .venv/dev.stamp  ## memory, tasks and handles under MINUTES of mixed load
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

bench-speculative: .venv/dev.stamp  ## what a draft model brings, and what it costs
	$(BIN)/python -m benchmarks.speculative

bench-recorded-search: .venv/dev.stamp  ## choosing among chains of real models' searches, recorded in ../shared
	$(BIN)/python -m benchmarks.recorded_search

bench-overhead: .venv/dev.stamp  ## what the suite adds to direct calls
	$(BIN)/python -m benchmarks.overhead

bench-replay: .venv/dev.stamp  ## accuracy against FLOPs on the recordings in ../shared, beside baselines
	$(BIN)/python -m benchmarks.replay

lock:  ## requirements/*.txt from requirements/*.in
	requirements/lock.sh

clean:
	rm -rf .venv build

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run.stamp: .venv/bin/python requirements/run.txt pyproject.toml client/pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/run.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e client -e .
	@touch $@

.venv/dev.stamp: .venv/run.stamp requirements/dev.txt
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

.venv/train.stamp: .venv/dev.stamp requirements/train.txt
	$(BIN)/pip install -q --disable-pip-version-check -r requirements/train.txt
	@touch $@
