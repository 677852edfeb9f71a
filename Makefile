# The interface for people who work on prefopt. PYTHON is the interpreter that .venv is made with.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEVICE ?= auto

.PHONY: setup format check test faults bench speed report clean

setup: $(STAMP)

$(STAMP): requirements/lock.txt requirements/embedded.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prefopt needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/embedded.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(STAMP)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: setup
	$(BIN)/python -m pytest -q

faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/faults -m "faults or not faults"

bench: setup
	$(BIN)/prefopt compare benchmarks/imdb.toml --device $(DEVICE)
	$(BIN)/prefopt selftest --out results/imdb
	$(BIN)/prefopt report results/imdb

speed: setup
	$(BIN)/python -m benchmarks.speed --device $(DEVICE)

report: setup
	for folder in results/*/manifest.json; do $(BIN)/prefopt report $$(dirname $$folder) || exit 1; done

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
