# Each target works from a clean checkout with Python 3.10 or newer; the virtual environment is made once, in .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: demo test fast lint speed clean

demo: $(VENV)/installed
	$(BIN)/promptbench run --method maple --protocol base2new

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

fast: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not ray and not gpu"

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

speed: $(VENV)/installed
	$(BIN)/python -m promptbench.benchmarks.speed -o results/measured/speed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "promptbench needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
