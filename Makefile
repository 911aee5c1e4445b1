# On Linux or macOS: every target sets up its own virtual environment first; it takes Python 3.11 or newer, and the internet.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check panel format bench quality torture docs clean

demo: $(READY)
	$(BIN)/spwnet demo --out spwnet-demo --overwrite

test: $(READY)
	$(BIN)/pytest -n auto

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto --cov --cov-fail-under=95

# The napari plugin's panel: its tests are skipped where there is no Qt.
panel: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt 'napari[pyside6]'
	$(BIN)/pytest tests/test_napari_widgets.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python -m benchmarks

quality: $(READY)
	$(BIN)/python -m benchmarks.quality $(ARGS)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -E -W --keep-going -n -b html docs docs/_build/html
	@echo "the site: docs/_build/html/index.html"

$(VENV)/.docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

torture: $(READY)
	$(BIN)/python -m benchmarks torture fuzz endurance

clean:
	rm -rf $(VENV) spwnet-demo quality-results dist docs/_build docs/_generated
