# make demo    train the quickstart recipe: prints a table of base against GEBM, and draws a picture
# make test    run the test suite
# make test-inception   run the tests of plugins/gebm-kit-inception, in .venv-inception, since torch-fidelity needs torchvision
# make lint    check formatting, lint, types and import layers
# make docs    write docs/components.md and docs/interfaces.md from the code
# make gallery train the models of docs/gallery, and write it; about 25 minutes on two cores
# make site    build the documentation site into build/site, warnings being errors, and check its links
# make site-version VERSION=0.1   the same into build/versions/0.1, with a selector of the versions in build/versions
# Each first sets up .venv, with the kit and its plugins, if it is missing or pyproject.toml or constraints.txt changed.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PLUGINS := plugins/gebm-kit-flows plugins/gebm-kit-hf
INCEPTION := plugins/gebm-kit-inception
INCEPTION_VENV := .venv-inception
INCEPTION_STAMP := $(INCEPTION_VENV)/.installed
WORKERS ?= 2
PYTHON ?=
SITE_VERSION = $(or $(VERSION),$(shell $(BIN)/python -c "import gebm_kit; print(gebm_kit.__version__.rpartition('.')[0])"))

.PHONY: demo test test-inception lint format docs gallery site site-version clean

# One thread, here and in each test worker: on tensors this small, two threads wait for each other most of the time, and on
# a busy machine almost all of it.
demo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/gebm-kit train quickstart --threads 1

test: $(STAMP)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

test-inception: $(INCEPTION_STAMP)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(INCEPTION_VENV)/bin/python -m pytest -n $(WORKERS) $(INCEPTION)/tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python docs/generate.py

gallery: $(STAMP)
	$(BIN)/python -m benchmarks.gallery $(GALLERY)

site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	$(BIN)/python docs/site_check.py build/site

site-version: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python docs/site_version.py $(SITE_VERSION) build/versions

clean:
	rm -rf $(VENV) $(INCEPTION_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(STAMP): pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	@set -e; \
	fits='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'; \
	if ! $(BIN)/python -c "$$fits" 2>/dev/null; then \
	  for python in "$(PYTHON)" python3 python3.13 python3.12 python3.11 python3.14 python; do \
	    if [ -n "$$python" ] && "$$python" -c "$$fits" 2>/dev/null; then found="$$python"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "gebm-kit needs Python 3.11 to 3.14 with its venv module; name one with make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  echo "creating $(VENV) with $$("$$found" --version)"; \
	  rm -rf $(VENV); \
	  "$$found" -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[dev]" \
	  $(subst /gebm-kit-hf,/gebm-kit-hf[pipeline],$(PLUGINS:%=-e ./%))
	@touch $@

# The interpreter of .venv makes this environment. torch comes from the same index as in .venv, and torchvision with it.
$(INCEPTION_STAMP): $(STAMP) pyproject.toml constraints.txt $(INCEPTION)/pyproject.toml $(INCEPTION)/constraints.txt
	$(BIN)/python -m venv $(INCEPTION_VENV)
	$(INCEPTION_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt \
	  -c $(INCEPTION)/constraints.txt -e . -e ./$(INCEPTION) pytest pytest-xdist
	@touch $@
