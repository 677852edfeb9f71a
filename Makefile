# The interface for people who work on prefopt. PYTHON is the interpreter that .venv is made with.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEVICE ?= auto
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup format check lock test faults bench tuned pipeline speed report clean

setup: $(STAMP)

$(STAMP): requirements/lock.txt requirements/embedded.txt requirements/torch.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prefopt needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --require-hashes --no-deps -r requirements/lock.txt -r requirements/embedded.txt
	$(INSTALL) -r requirements/torch.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $(STAMP)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive prefopt requirements
	$(BIN)/python requirements/audit.py

# After a version was changed in requirements/lock.txt: the hashes of its files. Needs uv.
lock:
	{ grep '^#' requirements/lock.txt; grep -o '^[^ #]*==[^ ]*' requirements/lock.txt | uv pip compile - --quiet --no-deps \
		--universal --python-version 3.11 --generate-hashes --no-annotate --no-header; } > requirements/lock.new
	mv requirements/lock.new requirements/lock.txt

test: setup
	$(BIN)/python -m pytest -q --numprocesses=auto --maxprocesses=8 --dist=loadscope

faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/faults -m "not part"

bench: setup
	$(BIN)/prefopt compare benchmarks/imdb.toml --device $(DEVICE)
	$(BIN)/prefopt selftest --out results/imdb
	test results/imdb/report.html -nt results/imdb/selftest.json || $(BIN)/prefopt report results/imdb

pipeline: setup
	test -d results/pipeline-reward || $(BIN)/prefopt reward benchmarks/pipeline.toml --device $(DEVICE) --out results/pipeline-reward
	$(BIN)/prefopt compare benchmarks/pipeline.toml --device $(DEVICE)

# Hours on slow cores; it goes on where it stopped.
tuned: setup
	$(BIN)/prefopt tune benchmarks/tuned.toml --device $(DEVICE)
	$(BIN)/prefopt selftest --out results/imdb-tuned
	test results/imdb-tuned/report.html -nt results/imdb-tuned/selftest.json || $(BIN)/prefopt report results/imdb-tuned

speed: setup
	$(BIN)/python -m benchmarks.speed --device $(DEVICE)

report: setup
	for folder in results/*/manifest.json results/published/*/manifest.json; do test ! -f $$folder || $(BIN)/prefopt report $$(dirname $$folder) || exit 1; done

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
