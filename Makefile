# isoflop: `make demo` and `make test` set everything up by themselves, in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test test-all lint proto up train lock bench-embedded bench-overhead clean

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

train: .venv/train.stamp  ## the embedded models, from nothing
	$(BIN)/python -m training.train
	$(BIN)/python -m training.calibrate

bench-embedded: .venv/dev.stamp  ## accuracy against FLOPs on held-out problems
	$(BIN)/python -m benchmarks.embedded

bench-overhead: .venv/dev.stamp  ## what the suite adds to direct calls
	$(BIN)/python -m benchmarks.overhead

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
