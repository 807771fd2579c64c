# One command per purpose; each does its own set-up. `make help` lists them.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=

.PHONY: help demo test test-unit test-e2e test-faults test-attacks test-system docs bundle lint venv tesseract clean

help:                ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | sort

demo: venv tesseract ## the whole system on this machine; ARGS='--data DIR DIR' for real folders
	$(BIN)/usfmae demo $(ARGS)

test: venv tesseract lint ## lint and every test of the ordinary suite
	$(BIN)/python -m pytest -m "not e2e and not faults and not attacks and not system" $(ARGS)
	$(BIN)/python -m pytest -m "e2e and not faults and not attacks and not system" $(ARGS)

test-unit: venv tesseract ## the tests that start no processes
	$(BIN)/python -m pytest -m "not e2e and not faults and not attacks and not system" $(ARGS)

test-e2e: venv tesseract ## the tests that start real processes
	$(BIN)/python -m pytest -m "e2e and not faults and not attacks and not system" $(ARGS)

test-faults: venv tesseract ## the kill and outage matrix; prints a table
	$(BIN)/python -m pytest -m faults -s $(ARGS)

test-attacks: venv tesseract ## the hostile-site matrix; prints the verdicts
	$(BIN)/python -m pytest -m attacks -s $(ARGS)

test-system: venv tesseract ## against Debian's Orthanc, DCMTK, Prometheus, Chromium, in namespaces; needs them installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/system/requirements.txt
	$(BIN)/python -m pytest -m system -s $(ARGS)

docs: venv           ## the documentation, in docs/_build/html
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	$(BIN)/python -m sphinx -q -b html docs docs/_build/html

bundle: docs         ## the offline bundle, in dist/bundle; VARIANT=cpu leaves the GPU libraries out
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 setuptools wheel
	deploy/offline/bundle.sh dist/bundle $(BIN)/python

lint: venv           ## ruff, mypy, import-linter
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	MYPYPATH=.dev $(BIN)/mypy -p usfmae.core -p usfmae.client -p usfmae.server
	PYTHONPATH= $(BIN)/lint-imports --no-cache >.lint-imports.log || { cat .lint-imports.log; exit 1; }

venv: $(VENV)/ready  ## .venv with the pinned dependencies and this project

$(VENV)/ready: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) - not found - install Python 3.11 with venv, or give PYTHON=..." >&2; exit 7; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	mkdir -p .dev/usfmae && for room in core client server; do ln -sfn ../../$$room .dev/usfmae/$$room; done
	touch $@

tesseract:           ## make sure of Tesseract (Debian's package when root)
	@command -v tesseract >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq tesseract-ocr >/dev/null; \
	  else echo "error: tesseract - not found - install it: sudo apt-get install tesseract-ocr" >&2; exit 7; fi; }

clean:               ## remove what was made here
	rm -rf $(VENV) .dev demo-out build *.egg-info
