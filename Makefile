# make report, test, test-slow, test-slurm, lab, lint: each makes the environment first if it is missing.
PYTHON ?= python3
PARAMS ?= params/quick.yaml
BIN := .venv/bin
READY := .venv/ready

.PHONY: report test test-slow test-slurm lab lint env clean

report: env
	@$(BIN)/rnnbench run "$(PARAMS)" $(if $(RUNS),--runs "$(RUNS)") \
		$(if $(OUT),--output-dir "$(OUT)") $(if $(JOBS),--jobs "$(JOBS)")

test: env
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: env
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m slow

test-slurm: env
	@PATH="$(CURDIR)/$(BIN):$$PATH" tests/slurm/run.sh

lab: env
	@$(BIN)/jupyter lab --notebook-dir=.

lint: env
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/nbstripout --verify notebooks/*.ipynb

env: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: name one, as in make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making the environment in .venv (once; PyTorch is a large download) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
