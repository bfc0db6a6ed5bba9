# Python 3.11 or newer, pip and make are all that must be there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: bench demo test test-crash lint types layers wheel clean

demo: $(VENV)/.installed
	$(BIN)/spinezarr demo --out demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2

# Hundreds of kills on disk and in a bucket, beside plain zarr-python; about 20 minutes on two cores.
test-crash: $(VENV)/.installed
	$(BIN)/python tests/crash/long.py --json build/crash.json
	CRASH_ROUNDS=10 $(BIN)/python -m pytest -n 2 tests/crash/test_together.py tests/crash/test_faults.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

layers: $(VENV)/.installed
	$(BIN)/lint-imports

# The wheel, alone in a new environment, used from a folder outside the checkout.
wheel: $(VENV)/.installed
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel .
	$(PYTHON) -m venv --clear build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet build/wheel/*.whl
	build/wheel/venv/bin/python -m pip check
	cd "$$(mktemp -d)" && "$(CURDIR)/build/wheel/venv/bin/python" "$(CURDIR)/.ci/use_wheel.py"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

bench: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/patches.py --json build/patches.json

clean:
	rm -rf $(VENV) build dist demo
