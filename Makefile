# `make demo` is the main job, `make test` what CI runs; both do all the set-up on a fresh machine with Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# The newest torch for Linux is a CUDA build of several gigabytes; constraints.txt pins every version.
# For the small CPU build: make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# Many tests wait for processes that they start, so there is one worker more than processors.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
# Bytecode is written whatever the environment says: else every worker compiles all tests again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

.PHONY: demo test check types pytest coverage fix docs site browser check-site clean

demo: .venv/demo.stamp
	$(BIN)/flooding demo

test: .venv/dev.stamp
	$(MAKE) --no-print-directory check

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory -j 2 types pytest

types: .venv/dev.stamp
	$(BIN)/pyright

pytest: .venv/dev.stamp
	$(PYTEST)

# Not a part of `check`: tracing every branch takes about half as long as the tests themselves.
coverage: .venv/dev.stamp
	$(PYTEST) --cov

# Builds the site and serves it at http://127.0.0.1:8000.
docs: site
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site 8000

# No broken link, no public name without documentation. The variable turns off an advertisement.
site: .venv/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Debian's chromium for the tests of pages; they are skipped without it. Needs root.
browser:
	apt-get update && apt-get install -y chromium

# Every page of the site in that browser: console, requests, narrow window, accessibility.
check-site: site
	$(BIN)/python docs/check_site.py

fix: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/demo.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt -e '.[demo]'
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt -e '.[all,dev]'
	touch $@

clean:
	rm -rf .venv site .pytest_cache .ruff_cache .hypothesis .coverage*
