# One command per purpose; each does its own set-up. `make help` lists them.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
# The tests without processes of their own share the cores; a file's tests stay together.
UNIT   := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not e2e and not faults and not attacks and not system and not slow"

.PHONY: help demo test test-unit test-e2e test-slow test-faults test-attacks test-system test-all gpu coverage docs bundle lint lock hashes venv tesseract packages clean

help:                ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | sort

demo: tesseract ## the whole system on this machine; ARGS='--data DIR DIR' for real folders
	$(BIN)/usfmae demo $(ARGS)

test: packages lint ## lint, and the tests that take minutes altogether
	$(UNIT) $(ARGS)
	$(BIN)/python -m pytest -m "e2e and not faults and not attacks and not system and not slow" $(ARGS)

test-unit: tesseract ## the tests that start no processes
	$(UNIT) $(ARGS)

test-e2e: packages ## the tests that start real processes
	$(BIN)/python -m pytest -m "e2e and not faults and not attacks and not system and not slow" $(ARGS)

test-slow: packages ## the long ones: learning with negative controls, kill -9 of a run, DDP, reproduce, Ray
	$(BIN)/python -m pytest -m "slow and not faults and not attacks and not system" $(ARGS)

test-faults: packages ## the kill and outage matrix; prints a table
	$(BIN)/python -m pytest -m faults -s $(ARGS)

test-attacks: packages ## the hostile-site matrix; prints the verdicts
	$(BIN)/python -m pytest -m attacks -s $(ARGS)

test-system: packages ## against Debian's Orthanc, DCMTK, Prometheus, Chromium, proxies, in namespaces
	@$(call debian,Orthanc:orthanc:orthanc-dicomweb storescu:dcmtk prometheus:prometheus shellcheck:shellcheck \
	  nginx:nginx:libnginx-mod-stream caddy:caddy)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/system/requirements.txt
	$(BIN)/python -m pytest -m system -rs $(ARGS)

test-all: ## every suite one after the other, and one table of what each said; SUITES='test-unit docs' for some
	$(PYTHON) tests/suites.py $(SUITES)

gpu: venv            ## nine minutes on a GPU: right, fast, fed, resumed, learning; ARGS='--scans DIR' or --dry on a CPU
	$(BIN)/python benchmarks/gpu.py --out gpu-out --json $(ARGS)

coverage: packages   ## the ordinary tests under coverage, with a table of what is not covered
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term:skip-covered \
	  -m "not e2e and not faults and not attacks and not system and not slow" $(ARGS)

docs: venv           ## the documentation, in docs/_build/html
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

bundle: docs         ## the offline bundle, in dist/bundle; VARIANT=cpu leaves the GPU libraries out
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	deploy/offline/bundle.sh dist/bundle $(BIN)/python

lint: venv           ## ruff, mypy, import-linter
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy -p usfmae.core -p usfmae.client -p usfmae.server
	$(BIN)/mypy --config-file tests/mypy.ini tests benchmarks
	PYTHONPATH= $(BIN)/lint-imports --no-cache >.lint-imports.log || { cat .lint-imports.log; exit 1; }

venv: $(VENV)/ready  ## .venv with the pinned dependencies and this project

$(VENV)/ready: requirements.hashes.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) - not found - install Python 3.11 with venv, or give PYTHON=..." >&2; exit 7; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.hashes.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

tesseract: venv      ## make sure of Tesseract and what OpenCV links to
	@$(call debian,tesseract:tesseract-ocr)
	@$(BIN)/python -c "import cv2" 2>/dev/null || { $(call install,libgl1 libglib2.0-0); }

packages: tesseract  ## ... and of what the ordinary tests start
	@$(call debian,chromium:chromium tinyproxy:tinyproxy ip:iproute2 nft:nftables faketime:faketime ffmpeg:ffmpeg)

lock:                ## pin the newest packages that pyproject.toml admits, with and without their hashes
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	build/lock/bin/pip install --quiet --disable-pip-version-check "setuptools>=77" ".[dev,bench,onnx,cstore,ray,dp]"
	{ echo "# Every package of the tested environment (Python 3.11, Linux x86-64). Made by 'make lock'."; \
	  build/lock/bin/pip freeze --all --exclude usfmae --exclude pip; } > requirements.lock
	$(MAKE) hashes PIP=build/lock/bin/pip

PIP ?= $(BIN)/python -m pip
hashes:              ## requirements.hashes.lock from requirements.lock: the same versions, each with its file's SHA-256
	$(PIP) install --quiet --disable-pip-version-check --dry-run --ignore-installed --no-deps \
	  --report build/report.json -r requirements.lock
	$(PYTHON) deploy/lock_hashes.py build/report.json > requirements.hashes.lock

# Install Debian packages when root, else say exactly what to install.
install = if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(1) >/dev/null; \
	  else echo "error: $(1) - not installed - run: sudo apt-get install $(1)" >&2; exit 7; fi
# $(call debian,program:package[:package] ...): install the packages of the programs that are not there, in one go.
debian = missing=$$(PATH="$$PATH:/usr/sbin:/sbin"; for one in $(1); do \
	  command -v "$${one%%:*}" >/dev/null || echo "$${one\#*:}" | tr ':\n' '  '; done); \
	  [ -z "$$missing" ] || { $(call install,$$missing); }

clean:               ## remove what was made here
	rm -rf $(VENV) demo-out build *.egg-info
