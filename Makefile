# Every target sets itself up: a virtual environment with the locked packages, made once and
# remade only when the lock or the metadata changes. Needs Python 3.11 or newer, make and git.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DEMO_DIR ?= demo-output

# Which tests `make test` runs; container and slurm need services that few machines have.
MARKERS ?= not container and not slurm
QUICK := not slow and not end_to_end and not browser and not container and not slurm
PYTEST_ARGS ?=

# Tests give wrong types on purpose, and look into networks whose parts mypy knows only as Tensor or Module.
TESTS_MAY := $(addprefix --disable-error-code ,arg-type index union-attr) --no-warn-unused-ignores

.PHONY: help venv demo test test-quick lint types docs lock clean distclean

help:
	@echo "make demo        simulate a small BIDS dataset, denoise it, write the reports to $(DEMO_DIR)"
	@echo "make test        the whole test suite (MARKERS='not slow' and PYTEST_ARGS=... narrow it)"
	@echo "make test-quick  the tests that take seconds"
	@echo "make lint        ruff check and ruff format --check"
	@echo "make types       mypy against an installed copy"
	@echo "make docs        the manual as HTML in build/site"
	@echo "make lock        resolve setup.cfg anew into requirements.lock"
	@echo "make clean       remove what was built; make distclean also removes $(VENV)"

venv: $(STAMP)

# setuptools comes from the lock, hence no build isolation.
$(STAMP): requirements.lock setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no python3.11 or python3 found; say PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; say PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the locked packages into $(VENV) (minutes the first time)"
	@$(PIP) install -r requirements.lock
	@rm -rf *.egg-info build/lib
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	$(BIN)/dwmri-bidsapp demo $(DEMO_DIR)

test: $(STAMP)
	$(BIN)/python -m pytest -m "$(MARKERS)" $(PYTEST_ARGS)

test-quick: $(STAMP)
	$(BIN)/python -m pytest -m "$(QUICK)" $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# An installed copy, because only there does dwmri_bidsapp.workflows stand under its real name.
types: $(STAMP)
	@rm -rf build/lib build/bdist* build/typed
	@$(PIP) install --no-deps --no-build-isolation --target build/typed .
	$(BIN)/mypy build/typed/dwmri_bidsapp
	cd build/typed && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache/tests $(TESTS_MAY) $(CURDIR)/tests

docs: $(STAMP)
	@$(PIP) install --constraint requirements.lock --no-build-isolation --editable '.[docs]'
	$(BIN)/mkdocs build --site-dir build/site

# Local versions (torch's +cpu) and the CUDA packages that torch itself pins depend on the machine.
lock:
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/pip --disable-pip-version-check --quiet install 'torch==2.13.0' setuptools '.[dev]'
	@build/lock/bin/pip --disable-pip-version-check freeze --all --exclude dwmri-bidsapp \
		| sed -E 's/^([^=]+==[^+]+)\+.*$$/\1/' | grep -vE '^(pip|nvidia-|cuda-|triton)' > build/requirements.lock
	@mv build/requirements.lock requirements.lock
	@rm -rf build/lock

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage* demo-output
	find dwmri_bidsapp workflows tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
