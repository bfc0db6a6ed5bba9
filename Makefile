# Python 3.11 or newer, pip and make must be installed, and nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# PyTorch is installed first, so that it can come from an index of CPU builds (PIP_EXTRA_INDEX_URL).
TORCH ?= torch==2.13.0
NNUNET ?= nnunetv2==2.8.1
# What training nnU-Net imports beside what is installed. --no-deps keeps versions as they are.
NNUNET_PACKAGES := acvl-utils batchgenerators batchgeneratorsv2 dynamic-network-architectures scikit-image seaborn \
  fft-conv-pytorch imageio joblib lazy-loader scikit-learn tifffile timm

.PHONY: bench bench-baselines bench-codecs bench-dask bench-derived bench-ingest bench-loaders bench-memory bench-newest bench-remote bench-remote-s3 bench-resampling bench-s3 bench-scans bench-serve bench-start bench-training bench-view bench-window demo docs flips fuzz-kernel golden release-check test test-catalogs test-ceph test-crash test-hostile test-load test-long test-newest test-oldest test-ome notebooks lint types layers wheel wheels clean

demo: $(VENV)/.installed
	$(BIN)/spinezarr demo --out demo

# Tests start many processes, so Python must keep the modules that it compiles, even if the shell forbids it.
test test-long test-oldest release-check: export PYTHONDONTWRITEBYTECODE :=

# Four processes suit two cores, because many tests wait for other processes and for slow servers. An
# idle process takes over half of the tests of another.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 4 --dist worksteal -m 'not long'

# These tests kill processes, let disks and networks fail, and run short forms of the benchmarks. The
# tests of docs/deploy need proxies: apt-get install --no-install-recommends nginx-light caddy
LONG ?= tests
test-long: $(VENV)/.installed
	$(BIN)/python -m pytest -n 4 --dist worksteal -m long $(LONG)

# Commands read 12,000 damaged files, 20,000 malicious stores, and 4,000 malicious catalogs, recipes,
# cards and tables, in processes with limits. Then a server gets 10,000 malicious requests. 'make
# test' runs some of these cases, and 'make test-long' some hundreds.
test-hostile: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python tests/hostile/fuzz.py --count 12000 --json build/hostile.json
	$(BIN)/python tests/hostile/stores_fuzz.py --count 20000 --json build/hostile-stores.json
	$(BIN)/python tests/hostile/strangers.py --count 4000 --json build/strangers.json
	$(BIN)/python tests/hostile/server_fuzz.py --count 10000 --json build/hostile-server.json

# 64 clients send requests to one server for ten minutes. Each answer is compared with the disk.
test-load: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python tests/support/load.py --minutes 10 --json build/load.json

# Malformed chunks and tables are given to a kernel that is built with the address and
# undefined-behavior sanitizers. Then the ordinary kernel decodes chunks, compared with numcodecs.
fuzz-kernel: $(VENV)/.installed
	$(BIN)/python tests/stream/read/test_native.py --count 20000

# Flips a thousand bytes of a store, one by one. Each must be found, and none may become data.
flips: $(VENV)/.installed
	SPINEZARR_FLIPS=1000 $(BIN)/python -m pytest tests/verify -k flipped

# Kills runs hundreds of times, on disk and in a bucket, and plain zarr-python for comparison. This
# takes about 20 minutes on two cores.
test-crash: $(VENV)/.installed
	$(BIN)/python tests/crash/long.py --json build/crash.json
	CRASH_ROUNDS=10 $(BIN)/python -m pytest -n 2 tests/crash/test_concurrent_commands.py tests/crash/test_faults.py

# Runs the tests with the newest Python of Debian and the newest zarr, but for those that need PyTorch,
# nnU-Net, MkDocs or a browser; needs Debian, root and debootstrap. highdicom leaves a database open there.
NEEDS_TORCH := spinezarr/loaders tests/loaders tests/compare/test_surface.py tests/export/test_nifti.py tests/export/test_nnunet.py \
  tests/export/test_predictions.py tests/formats/test_file_kinds.py tests/real/test_exports.py \
  tests/stream/read/test_retry.py tests/stream/test_remote.py tests/test_docs.py tests/test_site.py
test-newest:
	tests/support/newest.sh '$$BIN/python -m pytest -n 4 --dist worksteal -m "not long" $(NEEDS_TORCH:%=--ignore=%) \
	  -W "ignore:unclosed database:ResourceWarning" --deselect tests/test_api.py::test_every_name_in_all_of_a_module_exists'

# Runs the same tests with Python 3.11 and the oldest versions that pyproject.toml allows, of all packages
# that it names, in an environment of its own.
OLDEST := build/oldest
TEST_TOOLS := blosc2 datasets highdicom hypothesis ipykernel 'moto[server]>=5.1' nbclient ngff-zarr obstore pcodec playwright pytest \
  pytest-xdist safetensors 'schemathesis>=4' SimpleITK tensorstore zarrs
EXTRAS_TESTED := all,neuroglancer,notebook
test-oldest:
	mkdir -p build
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet packaging uv
	$(OLDEST)/bin/python tests/support/oldest.py $(EXTRAS_TESTED) build/oldest.txt
	$(OLDEST)/bin/python -m uv pip install --quiet --compile-bytecode --python $(OLDEST)/bin/python --constraint build/oldest.txt \
	  --editable '.[$(EXTRAS_TESTED)]' $(TEST_TOOLS)
	# Old packages warn about the newest ones that they use, and leave sockets open. The ngff-zarr that goes with an old dask cannot read OME-Zarr 0.5.
	$(OLDEST)/bin/python -m pytest -n 4 --dist worksteal -m "not long" -W ignore::DeprecationWarning -W ignore::FutureWarning \
	  -W "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning" $(NEEDS_TORCH:%=--ignore=%) \
	  --ignore tests/serve/test_ome_readers.py --deselect tests/test_api.py::test_every_name_in_all_of_a_module_exists

# Other readers of OME-Zarr run in an environment of their own, because they need an old pydantic.
test-ome:
	mkdir -p build
	$(PYTHON) -m venv build/ome
	build/ome/bin/python -m pip install --quiet '$(TORCH)'
	build/ome/bin/python -m pip install --quiet --editable '.[ome-readers]'
	build/ome/bin/python -m pytest -n 0 -p no:napari -p no:npe2 tests/serve/test_ome_readers.py

# mlcroissant and intake read the descriptions of a store in an environment of their own.
test-catalogs:
	mkdir -p build
	$(PYTHON) -m venv build/catalogs
	build/catalogs/bin/python -m pip install --quiet '$(TORCH)'
	build/catalogs/bin/python -m pip install --quiet --editable '.[catalog-readers]'
	build/catalogs/bin/python -m pytest -n 0 tests/describe/test_catalog_readers.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

layers: $(VENV)/.installed
	$(BIN)/lint-imports

# Builds the documentation into build/site, from where a browser opens it without a server. Warnings are errors.
docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict --quiet

# Installs the wheel alone in a new environment, and uses it from a folder outside the checkout.
wheel: $(VENV)/.installed
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel .
	$(PYTHON) -m venv --clear build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet build/wheel/*.whl
	build/wheel/venv/bin/python -m pip check
	cd "$$(mktemp -d)" && "$(CURDIR)/build/wheel/venv/bin/python" "$(CURDIR)/.ci/use_wheel.py"

# Writes the stores of this version that later versions must read, into tests/golden. It is run once for a
# release.
golden: $(VENV)/.installed
	$(BIN)/python tests/support/golden_stores.py tests/golden

# Builds the files of a release into dist/: the sdist, and from it the wheels for Linux and macOS.
RELEASE_TOOLS := build/release/tools
wheels: $(RELEASE_TOOLS)/.installed
	$(RELEASE_TOOLS)/bin/python .ci/release.py build

$(RELEASE_TOOLS)/.installed: Makefile
	$(PYTHON) -m venv --clear $(RELEASE_TOOLS)
	$(RELEASE_TOOLS)/bin/python -m pip install --quiet build cffconvert 'hatchling>=1.26' lief packaging twine 'ziglang>=0.13'
	touch $@

# Does all that a release needs except uploading it: versions, golden stores, sdist, wheels, and both in
# clean environments.
release-check: wheels $(VENV)/.installed
	$(BIN)/python -m pytest -n 0 tests/release tests/golden
	$(RELEASE_TOOLS)/bin/python .ci/release.py check

$(VENV)/.installed: pyproject.toml hatch_build.py $(wildcard spinezarr/*/*.c spinezarr/*/*/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	# Tests use only the readers of nnU-Net; training would need more packages.
	$(BIN)/python -m pip install --quiet --no-deps '$(NNUNET)'
	touch $@

# Measures all peers in about 20 minutes. PAIR='CT.nii.gz MASK.nii.gz' measures a scan of your own.
bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p build
	$(BIN)/python benchmarks/patches.py $(PAIR) --folder build --json build/patches.json --png build/patches.png

# Trains a MONAI network and nnU-Net from a store and from their own formats, for the same seconds: about
# half an hour. STORE=PATH trains on scans of your own. nnU-Net needs more packages than tests have.
bench-baselines: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python examples/train_monai.py $(STORE) --json build/train-monai.json
	$(BIN)/python -m pip install --quiet --upgrade --target build/nnunet --no-deps $(NNUNET_PACKAGES)
	PYTHONPATH=build/nnunet $(BIN)/python examples/train_nnunet.py $(STORE) --json build/train-nnunet.json

# SCANS='CT.nii.gz,MASK.nii.gz ...' measures scans of your own too, and draws the first.
bench-codecs: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/codecs.py $(SCANS) --json build/codecs.json --png build/codecs.png

# Compares an epoch that dask computes, in threads, processes and a cluster, with iterating over it.
bench-dask: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/dask_epochs.py $(PAIR) --json build/dask.json

# Compares patches of derived stores with patches that are resampled on the way, and with nnU-Net's copy
# if its preprocessing is installed. PAIR as above.
bench-derived: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/derived.py $(PAIR) --json build/derived.json

# Compares an ingest with building the Arrow form, which needs the package 'datasets'.
bench-ingest: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p build
	$(BIN)/python benchmarks/ingest.py --json build/ingest.json

# Compares the rates of the loaders with the engine alone, and measures the first batch of a store of
# 1,005 scans.
bench-loaders: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/loaders.py --json build/loaders.json

# Makes and ingests volumes of 8 GB, one after the other. This takes minutes, and 15 GB of disk.
bench-memory: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/memory.py --folder build --json build/memory.json

# Measures commands and a first batch in fresh interpreters, and the imports of peers.
bench-start: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/startup.py --json build/startup.json

# Resamples decoded boxes of voxels with spinezarr, scipy, PyTorch and SimpleITK. PAIR as above.
bench-resampling: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/resampling.py $(PAIR) --json build/resampling.json

# Compares patches with zarr-python 3.4 and later, which needs Python 3.12, in both of its pipelines, and
# with zarrs, tensorstore and blosc2; needs Debian, root and debootstrap.
bench-newest:
	tests/support/newest.sh '$$BIN/python benchmarks/patches.py $(PAIR) --folder build --json build/newest.json \
	  --peers zarr-python "zarr-python, fused" zarrs tensorstore blosc2 spinezarr "spinezarr, window" ".npy (upper bound)"'

# Opens stores of 10, 1,005 and 10,000 tiny scans, and adds one scan to each.
bench-scans: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/scans.py --json build/scans.json

# Compares the bytes of 'spinezarr serve' with nginx, Starlette and zarr-http-server; missing ones are
# left out. apt-get install nginx-light wrk; SERVE='--zarr-http-server PYTHON' names a Python >= 3.12
# that has that package.
bench-serve: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/serve.py $(PAIR) $(SERVE) --folder build --json build/serve.json

# Measures seconds and bytes until Chromium shows a scan, and until the scan is downloaded, and the time
# of a key in the search of long lists: apt-get install chromium.
bench-view: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/view.py $(PAIR) --folder build --json build/view.json

# Measures the tradeoff of windows of samples; reads no voxels.
bench-window: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/window.py --json build/window.json

# Runs the tests of buckets on a real gateway. All targets that use a gateway need Ceph:
# apt-get install --no-install-recommends ceph-common ceph-mgr ceph-mon ceph-osd radosgw
test-ceph: $(VENV)/.installed
	SPINEZARR_TEST_S3=ceph $(BIN)/python -m pytest \
	  tests/cli/test_buckets.py tests/ingestion/discovery/test_dicom_in_buckets.py \
	  tests/remote/test_s3_filesystem.py tests/remote/test_s3_transport.py tests/store/test_uploads.py

# Compares ingest and patches of a bucket with those of a disk. PAIR='CT.nii.gz MASK.nii.gz' measures
# a scan of your own.
bench-s3: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python benchmarks/s3.py $(PAIR) --json build/s3.json

# Compares peers over HTTP, on slow and faulty links; about an hour. PAIR as above. Ten thousand
# patches are read through faults by: python benchmarks/remote.py --faults --fault-patches 10000
bench-remote: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p build
	$(BIN)/python benchmarks/remote.py $(PAIR) --folder build --json build/remote.json --png build/remote.png

# Compares patches that 'spinezarr serve' reads with our ranges, and with peers on our store.
bench-training: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p build
	$(BIN)/python benchmarks/remote.py $(PAIR) --serve --kinds '128^3' '64^3' axial --folder build --json build/training.json --png build/training.png

# Does the same as bench-remote from a bucket; needs Ceph.
bench-remote-s3: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p build
	$(BIN)/python benchmarks/remote.py $(PAIR) --s3 --scans 32 --layouts '64³ lz4hc 7' '32³ lz4hc 7' --folder build --json build/remote-s3.json --png build/remote-s3.png

# Runs the notebooks of docs/notebooks, and keeps their outputs.
notebooks: $(VENV)/.installed
	$(BIN)/python tests/support/notebooks.py

clean:
	rm -rf $(VENV) build dist demo
