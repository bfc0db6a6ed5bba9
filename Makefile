# Python 3.11 or newer, pip and make are all that must be there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: bench bench-codecs demo flips test test-hostile lint types layers wheel clean

demo: $(VENV)/.installed
	$(BIN)/spinezarr demo --out demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2

# Ten thousand damaged files, each read in a process of its own; some hundreds are in 'make test'.
test-hostile: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python tests/hostile/fuzz.py --count 12000 --json build/hostile.json

# Flips a thousand bytes of a store, one by one: each must be found, and none become data.
flips: $(VENV)/.installed
	SPINEZARR_FLIPS=1000 $(BIN)/python -m pytest tests/verify -k flipped

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

# SCANS='CT.nii.gz,MASK.nii.gz ...' measures scans of your own too, and draws the first.
bench-codecs: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/codecs.py $(SCANS) --json build/codecs.json --png build/codecs.png

clean:
	rm -rf $(VENV) build dist demo
