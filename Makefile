# `make demo` and `make test` need nothing but Python 3.11 or newer: both create .venv first.
# Another interpreter: make PYTHON=/path/to/python3.12 demo

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
ZOO   := $(VENV)/.zoo
TYPES := $(VENV)/types/netcarve

# Can this interpreter run netcarve, and make a virtual environment?
PROBE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
NAMES := python3 python3.13 python3.12 python3.11 python3.14 python
PYTHON ?= $(shell for name in $(NAMES); do $$name -c '$(PROBE)' >/dev/null 2>&1 && echo $$name && break; done)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check format install clean

help:
	@echo "make demo     search the bundled digits task, about two minutes on 2 cores"
	@echo "make test     run the tests, some eight minutes on 2 cores"
	@echo "make test-all the same and those that take longest"
	@echo "make check    lint, formatting, types"
	@echo "make format   mend what can be mended of it"
	@echo "make clean    remove .venv and build products (never runs/)"

demo: $(STAMP)
	$(BIN)/netcarve sweep digits

# Two files at a time, one thread a process: Ray's workers are processes of their own.
test: $(STAMP) $(ZOO)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: override ARGS += -m 'slow or not slow'
test-all: test

check: $(STAMP) $(TYPES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

# torch first and alone: it is by far the largest, so that a failing download shows at once what is missing.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(PROBE)' 2>/dev/null || { \
	  echo "netcarve needs Python 3.11 or newer with its venv module; found none (tried: $(or $(PYTHON),$(NAMES)))." >&2; \
	  echo "Install it (Debian, Ubuntu: apt install python3-venv) or name one: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Published models for the tests, which skip those that are missing. Their wheels may ask for another torch, so
# that they come without dependencies; what the models then need to be imported is named here.
$(ZOO): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps \
	  torchvision timm transformers && \
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
	  huggingface_hub pillow pyyaml regex tokenizers tqdm && touch $@ || \
	echo "timm, torchvision, transformers: not installed; the tests of their models are skipped" >&2

# mypy has no setting for "this folder is the package netcarve", whatever the folder is called; a link says it.
$(TYPES): $(STAMP)
	@mkdir -p $(@D) && ln -sfn ../.. $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
