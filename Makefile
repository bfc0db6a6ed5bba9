# Python 3.11 or newer, pip and make are all that must be there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Installed first, so that an index of CPU builds, PIP_EXTRA_INDEX_URL say, can serve it.
TORCH ?= torch==2.13.0
NNUNET ?= nnunetv2==2.8.1

.PHONY: bench bench-codecs bench-ingest bench-loaders bench-memory bench-remote bench-remote-s3 bench-resampling bench-s3 bench-scans bench-serve bench-start bench-training bench-view bench-window demo flips fuzz-kernel test test-ceph test-crash test-hostile test-load test-long test-ome lint types layers wheel clean

demo: $(VENV)/.installed
	$(BIN)/spinezarr demo --out demo

# Tests start many processes: what Python compiled for one serves the next, whatever the shell says.
test test-long: export PYTHONDONTWRITEBYTECODE :=

# Twice as many processes as cores, as many tests wait for others' processes and for slow servers. A
# process without work takes over half of another's.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 4 --dist worksteal -m 'not long'

# Processes that are killed, disks and networks that fail, benchmarks in their short forms. Those of
# docs/deploy need proxies: apt-get install --no-install-recommends nginx-light caddy
test-long: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m long tests

# Ten thousand damaged files, twenty thousand pairs of a lying store and what is done with it, and
# four thousand lying catalogs, recipes, cards and tables, each given to a command; all in processes
# with limits. Then ten thousand requests to a server that nobody honest sends. Some are in
# 'make test', some hundreds in 'make test-long'.
test-hostile: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python tests/hostile/fuzz.py --count 12000 --json build/hostile.json
	$(BIN)/python tests/hostile/stores_fuzz.py --count 20000 --json build/hostile-stores.json
	$(BIN)/python tests/hostile/strangers.py --count 4000 --json build/strangers.json
	$(BIN)/python tests/hostile/server_fuzz.py --count 10000 --json build/hostile-server.json

# 64 clients on one server for ten minutes, each answer compared with the disk.
test-load: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python tests/support/load.py --minutes 10 --json build/load.json

# Chunks and tables that somebody made up, on a kernel that is built to notice every access outside
# its memory and all undefined behavior; then chunks on the kernel as it is, beside numcodecs.
fuzz-kernel: $(VENV)/.installed
	$(BIN)/python tests/stream/read/test_native.py --count 20000

# Flips a thousand bytes of a store, one by one: each must be found, and none become data.
flips: $(VENV)/.installed
	SPINEZARR_FLIPS=1000 $(BIN)/python -m pytest tests/verify -k flipped

# Hundreds of kills on disk and in a bucket, beside plain zarr-python; about 20 minutes on two cores.
test-crash: $(VENV)/.installed
	$(BIN)/python tests/crash/long.py --json build/crash.json
	CRASH_ROUNDS=10 $(BIN)/python -m pytest -n 2 tests/crash/test_together.py tests/crash/test_faults.py

# Other people's readers of OME-Zarr, in an environment of their own: they hold pydantic back.
test-ome:
	mkdir -p build
	$(PYTHON) -m venv build/ome
	build/ome/bin/python -m pip install --quiet '$(TORCH)'
	build/ome/bin/python -m pip install --quiet --editable '.[ome-readers]'
	build/ome/bin/python -m pytest -n 0 -p no:napari -p no:npe2 tests/serve/test_ome_readers.py

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

$(VENV)/.installed: pyproject.toml hatch_build.py $(wildcard spinezarr/stream/read/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	# Its readers only: training needs packages that are not wanted here.
	$(BIN)/python -m pip install --quiet --no-deps '$(NNUNET)'
	touch $@

# All peers, about 20 minutes. PAIR='CT.nii.gz MASK.nii.gz' measures a scan of your own.
bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p build
	$(BIN)/python benchmarks/patches.py $(PAIR) --folder build --json build/patches.json --png build/patches.png

# SCANS='CT.nii.gz,MASK.nii.gz ...' measures scans of your own too, and draws the first.
bench-codecs: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/codecs.py $(SCANS) --json build/codecs.json --png build/codecs.png

# The Arrow form to compare with needs 'datasets', which nothing else does.
bench-ingest: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p build
	$(BIN)/python benchmarks/ingest.py --json build/ingest.json

# Rates through the loaders beside the engine alone; the first batch of a store of 1,005 scans.
bench-loaders: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/loaders.py --json build/loaders.json

# Makes and ingests volumes of 8 GB, one after the other: minutes, and 15 GB of disk.
bench-memory: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/memory.py --folder build --json build/memory.json

# Commands and a first batch in fresh interpreters, and what peers take to import.
bench-start: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/startup.py --json build/startup.json

# Decoded boxes of voxels, resampled by us, scipy, PyTorch and SimpleITK. PAIR as above.
bench-resampling: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/resampling.py $(PAIR) --json build/resampling.json

# Stores of 10, 1,005 and 10,000 tiny scans: opening them, and adding one scan.
bench-scans: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/scans.py --json build/scans.json

# Bytes of 'spinezarr serve' beside nginx, Starlette and zarr-http-server; those that are missing are
# left out. apt-get install nginx-light wrk; SERVE='--zarr-http-server PYTHON' names a Python >= 3.12
# that has that package.
bench-serve: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/serve.py $(PAIR) $(SERVE) --folder build --json build/serve.json

# Seconds and bytes until a scan is seen in Chromium, beside downloading it: apt-get install chromium.
bench-view: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/view.py $(PAIR) --folder build --json build/view.json

# What windows of samples trade; reads nothing.
bench-window: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/window.py --json build/window.json

# The tests of buckets on a real gateway. Both need Ceph:
# apt-get install --no-install-recommends ceph-common ceph-mgr ceph-mon ceph-osd radosgw
test-ceph: $(VENV)/.installed
	SPINEZARR_TEST_S3=ceph $(BIN)/python -m pytest \
	  tests/cli/test_buckets.py tests/ingest/discovery/test_dicom_in_buckets.py \
	  tests/remote/test_s3_filesystem.py tests/remote/test_s3_transport.py tests/store/test_uploads.py

# PAIR='CT.nii.gz MASK.nii.gz' measures a scan of your own.
bench-s3: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/s3.py $(PAIR) --json build/s3.json

# Peers beside us over HTTP, on slow and faulty links; about an hour. PAIR as above. Ten thousand
# patches through faults: python benchmarks/remote.py --faults --fault-patches 10000
bench-remote: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p build
	$(BIN)/python benchmarks/remote.py $(PAIR) --folder build --json build/remote.json --png build/remote.png

# Training through 'spinezarr serve': patches that it reads, our ranges, and peers on our store.
bench-training: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p build
	$(BIN)/python benchmarks/remote.py $(PAIR) --serve --kinds '128^3' '64^3' axial --folder build --json build/training.json --png build/training.png

# The same from a bucket; needs Ceph.
bench-remote-s3: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p build
	$(BIN)/python benchmarks/remote.py $(PAIR) --s3 --scans 32 --layouts '64³ lz4hc 7' '32³ lz4hc 7' --folder build --json build/remote-s3.json --png build/remote-s3.png

clean:
	rm -rf $(VENV) build dist demo
