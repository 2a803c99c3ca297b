# Each target works from a clean checkout with Python 3.10 or newer; the virtual environment is made once, in .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
FAST    = "not slow and not ray and not gpu"
PAGES   = promptbench $(addprefix promptbench.,clip.backbone clip.prompts method metrics.ood protocol protocols)
# pdoc does not ask a package for names that it imports when they are first used
PDOC    = "import promptbench as pb, pdoc.__main__ as p; vars(pb).update({n: getattr(pb, n) for n in pb.__all__}); p.cli()"

.PHONY: demo test fast lowest lint docs speed gpu clean

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

# Pages of the public names and of the contracts, from their docstrings: build/docs/index.html
docs: $(VENV)/installed-docs
	$(BIN)/python -c $(PDOC) --docformat google --output-directory build/docs $(PAGES)

# About an hour on two quiet cores; a call that was ended goes on where it was.
speed: $(VENV)/installed-test
	$(BIN)/python -m promptbench.benchmarks.speed -o results/measured/speed

# On one card, at most eight minutes; `--device cpu` does a short form of it.
gpu: $(VENV)/installed-test
	$(BIN)/python -m promptbench.benchmarks.gpu -o results/measured/gpu

# What has the tools has the package, too.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(VENV)/installed $@

$(VENV)/installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
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
