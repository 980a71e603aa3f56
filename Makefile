# make demo and make test are all that a newcomer needs; both make the environment first and are quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPAT := .venv-compat
READY := $(VENV)/.ready
COMPAT_READY := $(COMPAT)/.ready
CHECKED := facedata tests benchmarks scripts docs

.PHONY: demo test faults lint format types docs docs-check compat bench wheel clean

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "facedata needs Python 3.11 or later; make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,detect,features,images,lists,parquet,readers,references,report]'
	touch $@

# MXNet 1.9.1 is the reference for record files; it needs Python 3.11 and an old NumPy, so it has an environment of its own
$(COMPAT_READY): pyproject.toml
	$(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,mxnet]'
	touch $@

demo: $(READY)
	$(BIN)/python scripts/demo.py

test: $(READY)
	$(BIN)/python -m pytest -n auto

# takes half an hour; make faults FAULTS="align --stride 7" is quicker, and sweep.py --help says more
faults: $(READY)
	$(BIN)/python tests/faults/sweep.py $(FAULTS)

lint: $(READY)
	$(BIN)/lint-imports --no-logo
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)

format: $(READY)
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python docs/generate_reference.py

docs-check: $(READY)
	$(BIN)/python docs/generate_reference.py --check

compat: $(COMPAT_READY)
	$(COMPAT)/bin/python -m pytest -n auto tests/compat

wheel: $(READY)
	$(BIN)/python scripts/check_wheel.py

# by hand, on a quiet machine: see benchmarks/README.md
bench: $(READY) $(COMPAT_READY)
	$(BIN)/python benchmarks/help_time.py
	$(BIN)/python benchmarks/unpack_rec.py --mxnet-python $(COMPAT)/bin/python
	$(BIN)/python benchmarks/large_set.py --mxnet-python $(COMPAT)/bin/python
	$(BIN)/python benchmarks/build_lmdb.py
	$(BIN)/python benchmarks/pack_rec.py --mxnet-python $(COMPAT)/bin/python
	$(BIN)/python benchmarks/rec_to_webdataset.py
	$(BIN)/python benchmarks/parquet.py
	$(BIN)/python benchmarks/scan_folder.py
	$(BIN)/python benchmarks/align.py
	$(BIN)/python benchmarks/similarity.py
	$(BIN)/python benchmarks/jpeg_quality.py
	$(BIN)/python benchmarks/extract_features.py
	$(BIN)/python benchmarks/pack_features.py
	$(BIN)/python benchmarks/build_knn.py
	$(BIN)/python benchmarks/verify_md5.py
	$(BIN)/python benchmarks/extract.py
	$(BIN)/python benchmarks/download.py

clean:
	rm -rf $(VENV) $(COMPAT) build dist demo *.egg-info .mypy_cache .ruff_cache .hypothesis
