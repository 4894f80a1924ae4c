# What can be done here: `make help`. Each target does the set-up that it needs by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The interpreter is in the name, so that naming another one makes the environment anew.
STAMP := $(VENV)/.with-$(subst /,-,$(PYTHON))

# A tree without byte code costs every start of `jobmon` the compilation of all that it imports.
unexport PYTHONDONTWRITEBYTECODE
# Nothing of the caller's Python is to leak into the environment.
unexport PYTHONPATH
unexport PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help demo test check lint mutants bench docs build clean

help:  ## show this list
	@echo 'make TARGET, where TARGET is one of:'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	    printf '%-9s %s\n' "$$name" "$$text"; done
	@echo 'Variables: PYTHON=python3.12 takes another interpreter (3.11 or later), ARGS="-k name" goes to pytest.'

# Two stages, so that the demo does not wait for the tools of the tests.
$(STAMP): setup.py contrib/setup
	@PYTHON='$(PYTHON)' VENV='$(VENV)' sh contrib/setup install
	@touch '$@'

$(STAMP).tools: $(STAMP)
	@PYTHON='$(PYTHON)' VENV='$(VENV)' sh contrib/setup tools
	@touch '$@'

demo: $(STAMP)  ## supervise a web server and a crashing worker before your eyes (15 seconds)
	@$(BIN)/python contrib/demo

test: $(STAMP).tools  ## run every test (a few minutes)
	$(BIN)/python -m pytest -q $(ARGS)

check: lint  ## ruff, mypy --strict and the fast tests (a minute)
	$(BIN)/python -m pytest -q -m 'not slow' $(ARGS)

lint: $(STAMP).tools  ## ruff and mypy --strict only
	$(BIN)/ruff check .
	$(BIN)/mypy --strict

mutants: $(STAMP).tools  ## change the policy, one expression at a time: a test must fail each time (an hour)
	@PYTHON='$(PYTHON)' VENV='$(VENV)' sh contrib/setup mutants
	$(BIN)/python contrib/mutants $(ARGS)

bench: $(STAMP)  ## measure JobMon beside supervisord, s6 and runit (installs them)
	$(BIN)/python -m compileall -q jobmon
	PATH="$(CURDIR)/$(BIN):$$PATH" bench/run $(ARGS)

docs: $(STAMP)  ## write docs/configuration.md and the state table again from the code
	$(BIN)/python contrib/docs

build: $(STAMP).tools  ## make dist/: the wheel and the source distribution
	rm -rf build dist
	$(BIN)/python setup.py -q sdist bdist_wheel
	rm -rf build

clean:  ## remove all that the targets made here, the virtual environment too
	rm -rf $(VENV) build dist mutants *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
