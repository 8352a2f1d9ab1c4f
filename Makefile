# make demo   set up .venv if need be, then run the whole pipeline on made data (demo/run.sh)
# make test   set up .venv if need be, then run the tests
# make test-faults   the long versions of the tests of faults: 1,000 damaged videos, 30 kills of each program; some 40 minutes
# PYTHON=python3.12 make demo   with another Python, 3.10 to 3.13
PYTHON ?= python3

.PHONY: demo test test-faults install
demo: .venv/installed
	demo/run.sh

test: .venv/installed
	.venv/bin/python -m pytest

test-faults: .venv/installed
	.venv/bin/python -m pytest --long -s tests/test_faults.py tests/test_interruptions.py

install: .venv/installed

.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} will not do, 3.10 to 3.13 will: PYTHON=python3.12 make $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	@echo "installing requirements.txt: about 6 GB on disk, most of it PyTorch with CUDA"
	.venv/bin/python -m pip install -r requirements.txt -c constraints.txt
	touch $@
