# Every target sets up what it needs: the virtual environment in .venv, then the packages in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help install train test test-slow chaos bench bench-gpu lint format constraints clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(INSTALLED)  ## the virtual environment, and everything in it

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v else f"metatrain needs Python 3.11 or later, this is {v}: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: $(INSTALLED)  ## the first experiment: strokes, on a local Ray cluster with two workers
	$(BIN)/metatrain train configs/strokes-protonet-5w1s.yaml

test: $(INSTALLED) lint  ## everything that must hold, in under 15 minutes on two cores
	$(BIN)/pytest -m 'not slow' -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)  ## what takes longer: drivers killed at many instants
	$(BIN)/pytest -m slow

chaos: $(INSTALLED)  ## kill workers, nodes and drivers, fail requests, and see that no bit changes: about ten minutes
	$(BIN)/python -m tests.chaos --seed 0 --kills 30

bench: $(INSTALLED)  ## measure against other libraries, and ourselves: about an hour, on a machine left alone
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks all

bench-gpu:  ## the same for a GPU, with the machine's own PYTHON, torch, numpy and pyarrow; METATRAIN_DATA holds omniglot/
	BENCHMARK_RESULTS=benchmarks/results/gpu $(PYTHON) -m benchmarks gpu

lint: $(INSTALLED)  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints:  ## newest versions that fit pyproject.toml, written down
	rm -rf .venv && $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev,bench]'
	{ echo '# Exact versions of everything that `make` installs; regenerate with `make constraints`.'; \
	  $(BIN)/pip freeze --exclude-editable; } > constraints.txt
	@touch $(INSTALLED)

clean:  ## remove what make made; runs and data stay
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
