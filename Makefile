# Each target works from a clean checkout with Python 3.10 or newer; the virtual environment is made once, in .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
FAST    = "not slow and not ray and not gpu"

.PHONY: demo test fast lowest lint speed clean

demo: $(VENV)/installed
	$(BIN)/promptbench run --method coop cocoop --protocol base2new

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

fast: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m $(FAST)

# The short tests with the lowest versions that pyproject.toml declares; Python 3.11 is the newest that has them all.
lowest: $(VENV)-lowest/installed
	$(VENV)-lowest/bin/python -m pytest -n 2 --dist loadfile -m $(FAST)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

speed: $(VENV)/installed-test
	$(BIN)/python -m promptbench.benchmarks.speed -o results/measured/speed

# What has the tools has the package, too.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(VENV)/installed $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(VENV)/installed $(VENV)/installed-test $@

$(VENV)-lowest/installed: pyproject.toml | $(VENV)-lowest/bin/python
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	$(VENV)-lowest/bin/python -m uv pip install --quiet --python $(VENV)-lowest --resolution lowest-direct --editable '.[test]'
	touch $@

%/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "promptbench needs Python 3.10 or newer")'
	$(PYTHON) -m venv $*

clean:
	rm -rf $(VENV) $(VENV)-lowest build *.egg-info
