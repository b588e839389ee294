# `make help` lists the targets; each makes the environment first if it is missing.
PYTHON ?= python3
PARAMS ?= params/quick.yaml
BIN := .venv/bin
READY := .venv/ready
INSTALL = $(BIN)/python -I -m pip install --disable-pip-version-check

# What is set for other work: it would put the packages elsewhere, or leave some out.
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_NO_DEPS PIP_DRY_RUN PIP_REQUIRE_VIRTUALENV
unexport PIP_QUIET PYTHONHOME PYTHONSTARTUP BASH_ENV ENV CDPATH

.PHONY: report test test-slow test-slurm lab lint env clean help

report: env
	@$(BIN)/rnnbench run "$(PARAMS)" $(if $(RUNS),--runs "$(RUNS)") \
		$(if $(OUT),--output-dir "$(OUT)") $(if $(JOBS),--jobs "$(JOBS)")

# One worker more than two cores: the tests of killed and full runs wait for most of their time.
test: env
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: env
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m slow

test-slurm: env
	@$(BIN)/python -c "import snakemake_executor_plugin_slurm" 2> /dev/null || $(INSTALL) -e ".[slurm]"
	@PATH="$(CURDIR)/$(BIN):$$PATH" tests/slurm/run.sh

lab: env
	@$(BIN)/jupyter lab --notebook-dir=. notebooks/00_start.ipynb

lint: env
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/nbstripout --verify notebooks/*.ipynb

# The programs of an environment name its folder: one that was moved or copied is mended.
env: $(READY)
	@[ ! -e "$(READY)" ] || grep -qsF "$(CURDIR)/.venv/bin/python" $(BIN)/rnnbench || { \
		echo "Mending .venv, which was made in another folder ..."; rm "$(READY)"; \
		$(BIN)/python -I rnnbench_nb/relocate.py && \
		$(INSTALL) --quiet --no-deps --no-build-isolation -e . && touch "$(READY)"; }

# Another Python may be on the path than that of an environment that works, which then stays.
$(READY): pyproject.toml
	@$(BIN)/python -I -m pip --version > /dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: name one, as in make PYTHON=python3.12" >&2; exit 1; }; \
		echo "Making the environment in .venv, once: some minutes, and several GB with PyTorch's"; \
		echo "default build for Linux; \`make env TORCH=cpu\` takes the one without CUDA."; \
		$(PYTHON) -I -m venv --clear .venv; }
	@$(if $(filter cpu,$(TORCH)),$(INSTALL) torch \
		--index-url https://download.pytorch.org/whl/cpu)
	@$(INSTALL) -e ".[dev]"
	@$(BIN)/python -I rnnbench_nb/relocate.py
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache

help:
	@echo "make report      train, compare and write reports/quick; PARAMS=, RUNS=, JOBS=, OUT= change it"
	@echo "make test        run the tests; test-slow and test-slurm are the long ones"
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make lint        check the code"
	@echo "make env         make or mend the environment in .venv; TORCH=cpu takes PyTorch without CUDA"
	@echo "make clean       remove the environment and caches, never results"
