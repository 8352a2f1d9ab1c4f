# make demo         set up .venv if need be, then run the whole pipeline on made data (demo/run.sh)
# make test         set up .venv if need be, then run all tests
# make test-fast    the tests that take no more than seconds each; under two minutes
# make test-faults  the long tests of faults: 1,000 damaged videos, 30 kills of each program; some 40 minutes
# make lint         ruff, import-linter and mypy
# make install      set up .venv
# PYTHON=python3.12 make demo   with another Python, 3.10 to 3.13
PYTHON ?= python3
# one test process a core; PyTorch's threads would only wait for each other
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-faults lint install
demo: .venv/installed
	demo/run.sh

test: .venv/installed
	$(PYTEST)

test-fast: .venv/installed
	$(PYTEST) -m "not slow"

test-faults: .venv/installed
	.venv/bin/python -m pytest --long -s tests/test_faults.py tests/test_interruptions.py

lint: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	.venv/bin/mypy

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} will not do, 3.10 to 3.13 will: PYTHON=python3.12 make $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	@echo "installing requirements.txt: about 6 GB on disk, most of it PyTorch with CUDA"
	.venv/bin/python -m pip install -r requirements.txt -r requirements-dev.txt -c constraints.txt
	touch $@
