# Every target first creates the virtual environment .venv with the packages of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help install train test test-slow chaos bench bench-gpu lint format constraints clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(INSTALLED)  ## create .venv and install everything into it

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v else f"metatrain needs Python 3.11 or later, this is {v}: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: $(INSTALLED)  ## run the first experiment: strokes, on a local Ray cluster with two workers
	$(BIN)/metatrain train configs/strokes-protonet-5w1s.yaml

# Three processes on two cores: a quarter of the time tests wait, for clusters and servers to start.
test: $(INSTALLED) lint  ## run lint and the test suite: about 10 minutes on two cores
	$(BIN)/pytest -m 'not slow' -n 3 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)  ## run the long tests: under an hour
	$(BIN)/pytest -m 'slow and not alone' -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest -m 'slow and alone'

chaos: $(INSTALLED)  ## kill workers, nodes and drivers, fail requests, and compare the results: about ten minutes
	$(BIN)/python -m tests.chaos --seed 0 --kills 30

bench: $(INSTALLED)  ## measure speed and memory against other libraries: about an hour, on an idle machine
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks all

bench-gpu:  ## measure on a GPU, with the machine's own PYTHON, torch, numpy and pyarrow; METATRAIN_DATA contains omniglot/
	BENCHMARK_RESULTS=benchmarks/results/gpu $(PYTHON) -m benchmarks gpu

lint: $(INSTALLED)  ## check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints:  ## pin the newest versions that pyproject.toml allows in constraints.txt
	rm -rf .venv && $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev,bench]'
	{ echo '# Exact versions of everything that `make` installs; regenerate with `make constraints`.'; \
	  $(BIN)/pip freeze --exclude-editable; } > constraints.txt
	@touch $(INSTALLED)

clean:  ## remove what make created; keep runs and data
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
