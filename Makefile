# make demo · make test · make check · make bench   (each sets up .venv itself)
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: demo test test-vllm check format bench lock protos clean

.venv/.ready: pyproject.toml requirements-dev.lock
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: .venv/.ready       ## three engines, the picker and a real Envoy on this machine; ARGS="--rate 40 --keep"
	$(BIN)/epp demo $(ARGS)

test: .venv/.ready       ## every test, the ones with the real Envoy included; ARGS="-k session"
	$(BIN)/python -m pytest $(ARGS)

test-vllm: .venv/.ready .vllm/.ready   ## two real vLLM servers on the CPU behind Envoy; the simulated engine against them
	$(BIN)/python -m pytest -s $(ARGS) tests/vllm/real_engines.py

.vllm/.ready: tests/vllm/install.py
	$(BIN)/python tests/vllm/install.py .vllm
	touch $@

check: .venv/.ready      ## linter, formatter, type checker (the tests run this too)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.ready
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: .venv/.ready      ## the figures of README.md; takes about a quarter of an hour
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script --json || exit 1; done

lock: .venv/.ready       ## after a change of dependencies in pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links -q -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --group dev --extra demo --extra replay --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links -q -o requirements-dev.lock

protos: .venv/.ready     ## after a change of protos/*.proto
	$(BIN)/python protos/compile

clean:
	rm -rf .venv .vllm .mypy_cache .ruff_cache .pytest_cache .hypothesis
