# `make demo` compresses a bundled model; `make test` passes the tests. Each creates the environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# What is installed: the locked versions. `make test LOCK=` takes the newest ones that pyproject.toml allows.
LOCK ?= requirements.lock
EXTRAS = cpu,images,tables,text,dev
comma = ,
# torch for the tests of training, which are skipped without: `make test TORCH=torch==2.13.0` (on Linux several GB from PyPI).
TORCH ?=
INSTALLED = $(VENV)/.installed
# One process a core; a test that takes long leaves the others to the next process.
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test coverage check upgrade clean

demo: $(INSTALLED)
	$(BIN)/lepton compress sample_models/digits_cnn.onnx -r configs/cnn-prune-int8.yaml -o out/demo
	@echo
	@echo "The report with charts: out/demo/report.html"

test: $(INSTALLED)
	$(PYTEST) $(PYTEST_ARGS)

coverage: $(INSTALLED)
	$(PYTEST) --cov --cov-report=term --cov-report=html $(PYTEST_ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml $(LOCK)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lepton needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(LOCK),$(PIP) --requirement $(LOCK))
	$(PIP) $(if $(LOCK),--no-deps,--upgrade) --editable '.[$(EXTRAS)]'
	$(if $(TORCH),$(PIP) $(TORCH))
	touch $@

COMPILE = $(BIN)/uv pip compile --quiet --python-version 3.11 --no-annotate \
	$(foreach extra,$(subst $(comma), ,$(EXTRAS)),--extra $(extra)) pyproject.toml

# The lock again, with the newest versions: run the tests before committing it.
upgrade: $(BIN)/uv
	$(COMPILE) --upgrade --universal --generate-hashes --custom-compile-command 'make upgrade' -o requirements.lock

# The oldest versions that pyproject.toml allows: `make oldest.txt && make test LOCK=oldest.txt`.
oldest.txt: pyproject.toml $(BIN)/uv
	$(COMPILE) --resolution lowest-direct -o $@

$(BIN)/uv:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) uv

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage
