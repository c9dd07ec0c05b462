# make demo | test | lint | fuzz | bench | gpu-check | clean      the first run sets up .venv, later ones reuse it
#   PYTHON=python3.12   the interpreter of .venv       TORCH=2.12.0   another torch than constraints.txt pins
#   ARGS="..."          passed on to the command           MMBDHS_CUDA=auto|on|off, MMBDHS_CUDA_ARCHS="80;90"

PYTHON ?= python3
VENV ?= .venv
TORCH ?=
ARGS ?=
BUILT_FROM := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f) mmbdhs/native/sentence_tables.py
CPP := $(shell find csrc tests/helpers/emulator -type f ! -name '*.py')
RUN := $(VENV)/bin/python

.DELETE_ON_ERROR:
.PHONY: demo test lint format fuzz bench gpu-check clean setup FORCE

demo: setup
	@$(RUN) -m mmbdhs demo $(ARGS)

test: setup
	@$(RUN) -m pytest -n 2 --dist loadfile $(ARGS)

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/clang-format --dry-run -Werror $(CPP)

format: setup
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/clang-format -i $(CPP)

# Ten million calls of the native ops under the sanitizers; .ci/run makes a hundred thousand.
fuzz: setup
	@MMBDHS_FUZZ_CALLS=10000000 .ci/sanitize -k test_extreme_integers $(ARGS)

bench: setup
	@$(RUN) benchmarks/run.py $(ARGS)

# For a machine that is used as it is found, without .venv: $(PYTHON) has torch and the build requirements.
gpu-check:
	@$(PYTHON) benchmarks/gpu_check.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info mmbdhs/native/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis

setup: $(VENV)/installed

$(VENV)/installed: $(VENV)/constraints.txt $(BUILT_FROM)
	@for compiler in $${CXX:-c++ g++ clang++}; do command -v $$compiler >/dev/null && exit; done; \
		echo "mmbdhs: needs a C++17 compiler, none was found: install g++ or clang++, or set CXX=…" >&2; exit 1
	@echo "mmbdhs: installing into $(VENV) and building the extension (minutes the first time)"
	@$(RUN) -m pip install -qq --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[demo,test]'
	@$(RUN) -m mmbdhs doctor
	@touch $@

# Written only when it changes, so that another TORCH or MMBDHS_CUDA leads to a new installation and nothing else does.
$(VENV)/constraints.txt: constraints.txt $(VENV)/pyvenv.cfg FORCE
	@echo "# MMBDHS_CUDA=$(MMBDHS_CUDA) MMBDHS_CUDA_ARCHS=$(MMBDHS_CUDA_ARCHS)" > $@.new
	@sed $(if $(TORCH),'s/^torch==.*/torch==$(TORCH)/','') constraints.txt >> $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "mmbdhs: needs Python 3.10 or newer, '$(PYTHON)' is older or missing: set PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
