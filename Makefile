# `make demo` and `make test` do everything, set-up included.
# They need Python 3.11 or newer with pip, and make.

PYTHON ?= python3
VENV ?= .venv
# test processes, one thread each
WORKERS ?= auto

# several threads per process on a busy machine are many times slower than one
export OMP_NUM_THREADS = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

py := $(VENV)/bin/python
run := $(VENV)/.stamp-run
test := $(VENV)/.stamp-test
docs := $(VENV)/.stamp-docs

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check format docs browser clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

demo: $(run)  ## evaluate the two digits models and write the report
	$(VENV)/bin/robustx evaluate digits

test: check  ## lint, types, tests and doctests
	$(py) -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

check: $(test)  ## what is quick to check: format, lint, types, import floors
	$(py) -m ruff format --check .
	$(py) -m ruff check .
	$(py) -m mypy
	$(py) -m pytest -q tests/test_floors.py

format: $(test)  ## format the code and mend what lint can mend
	$(py) -m ruff check --fix .
	$(py) -m ruff format .

docs: $(docs)  ## the documentation, without network; a warning is an error
	$(py) -m sphinx -W --keep-going -E -q -b html docs docs/_build/html
	@echo "Documentation: docs/_build/html/index.html"

# The tests that look at reports in a browser skip themselves, and say so, where there is none.
browser:  ## install Chromium for the tests of reports, where Debian's apt can
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    export DEBIAN_FRONTEND=noninteractive; \
	    timeout 300 apt-get update -qq && timeout 600 apt-get install -qq -y --no-install-recommends chromium >/dev/null \
	    || echo "Chromium could not be installed: the tests of reports in a browser will be skipped"; \
	else echo "No Chromium, and no way to install it: the tests of reports in a browser will be skipped"; fi

clean:  ## remove the environment and everything made here, but no runs
	rm -rf $(VENV) build dist *.egg-info docs/_build
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment for all. A stamp says what was installed into it, so the second time is quick.

# Some systems ship Python without the part of venv that brings pip: the pip outside brings it then.
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(f"robustx needs Python 3.11 or newer, $(PYTHON) is {sys.version.split()[0]}; name another one with PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV) || { \
	    $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(py) install pip; }
	@touch $@

$(run): $(VENV)/.stamp-venv setup.cfg pyproject.toml
	$(py) -m pip install -e .
	@touch $@

$(test): $(VENV)/.stamp-venv setup.cfg pyproject.toml tests/peers.txt
	$(py) -m pip install -e '.[test]'
	$(py) -m pip install --no-deps -r tests/peers.txt
	@touch $(run) $@

$(docs): $(VENV)/.stamp-venv setup.cfg pyproject.toml
	$(py) -m pip install -e '.[docs]'
	@touch $(run) $@
