# `make demo` is the main job, `make test` what CI runs; both do all the set-up on a fresh machine with Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# The newest torch for Linux is a CUDA build of several gigabytes; constraints.txt pins every version.
# For the small CPU build: make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=

.PHONY: demo test check coverage fix clean

demo: .venv/demo.stamp
	$(BIN)/flooding demo

test: .venv/dev.stamp
	$(MAKE) --no-print-directory check

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

# Not a part of `check`: tracing every branch takes about half as long as the tests themselves.
coverage: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --cov

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
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .coverage*
