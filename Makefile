# `make help` lists the targets. Each target first makes the environment with the packages it needs.
PYTHON ?= python3
PARAMS ?= params/quick.yaml
TESTS ?= tests
# `cpu` is PyTorch without CUDA, the default if there is no NVIDIA driver; TORCH=default overrides it.
TORCH ?= $(if $(wildcard /proc/driver/nvidia/version /dev/dxg),default,cpu)
BIN := .venv/bin
INSTALL = $(BIN)/python -I -m pip install --disable-pip-version-check
ON_PATH = PATH="$(CURDIR)/$(BIN):$$PATH"
# Programs of an environment contain its path, so a moved or copied environment is made again.
MOVED := $(shell [ ! -e $(BIN)/rnnbench ] || grep -qF "$(CURDIR)/$(BIN)/python" $(BIN)/rnnbench || echo yes)

# With these variables, pip would install packages elsewhere or leave some out.
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_NO_DEPS PIP_DRY_RUN PIP_REQUIRE_VIRTUALENV
unexport PYTHONHOME BASH_ENV ENV CDPATH

.PHONY: report test test-slow test-slurm lab lint graph env clean help moved

report: .venv/report.ready
	@$(BIN)/rnnbench run "$(PARAMS)" $(if $(RUNS),--runs "$(RUNS)") \
		$(if $(OUT),--output-dir "$(OUT)") $(if $(JOBS),--jobs "$(JOBS)")

# Two cores suit three workers, because tests of whole runs mostly wait.
test: .venv/dev.ready
	@$(ON_PATH) $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(TESTS)

test-slow: .venv/dev.ready
	@$(ON_PATH) $(BIN)/python -m pytest -n 2 -m slow $(TESTS)

test-slurm: .venv/slurm.ready
	@$(ON_PATH) tests/slurm/run.sh

lab: .venv/lab.ready
	@$(BIN)/jupyter lab --notebook-dir=. notebooks/00_start.ipynb

lint: .venv/dev.ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/nbstripout --verify notebooks/*.ipynb
	@$(BIN)/mypy
	@$(BIN)/lint-imports

graph: .venv/dev.ready
	@$(BIN)/import-linter drawgraph rnnbench_nb | tred | \
		sed -n 's/.*"\.\([a-z]*\)" *-> *"\.\([a-z]*\)".*/    \1 --> \2/p' | sort

env: .venv/report.ready

.venv/%.ready: pyproject.toml $(if $(MOVED),moved)
	@[ ! "$(MOVED)" ] && $(BIN)/python -I -m pip --version > /dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one, as in make PYTHON=python3.12." >&2; exit 1; }; \
		echo "Making the environment in .venv; this takes some minutes ..."; \
		$(PYTHON) -I -m venv --clear .venv; }
	@[ "$(TORCH)" != cpu ] || $(INSTALL) torch --timeout 10 --retries 0 \
		--index-url https://download.pytorch.org/whl/cpu || \
		echo "PyTorch without CUDA is unreachable; the default build of several GB is installed instead."
	@$(INSTALL) -e ".[$*]"
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .import_linter_cache

help:
	@echo "make report      train, compare and write reports/quick; options are PARAMS=, RUNS=, JOBS=, OUT="
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make test        run the tests, or those in TESTS=; test-slow and test-slurm run the long ones"
	@echo "make lint        check the code; make graph prints the graph of imports"
	@echo "make env         make or renew the environment in .venv; TORCH=cpu or TORCH=default chooses PyTorch"
	@echo "make clean       remove the environment and caches, but no results"
