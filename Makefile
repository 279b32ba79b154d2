# Each target does the set-up that it needs; .venv is made once and again when the wiring changes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.fedpeft-setup
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test test-portable test-slow test-faults test-gpu test-tasks fuzz mutants lint docs bench wheel clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "fedpeft needs Python 3.11 or 3.12; set PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,ray,reports,simulation]' -c constraints.txt
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/fedpeft simulate --out runs/demo --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-portable: $(STAMP)
	tests/portable.sh

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-faults: $(STAMP)
	$(BIN)/python -m pytest -m faults tests/faults

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

test-tasks: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lm-eval]' -c constraints.txt
	$(BIN)/python -m pytest tests/field/test_folders_tasks.py tests/fedpeft/test_answers.py

fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]' -c constraints.txt
	$(BIN)/python tests/fuzz/fuzz_envelopes.py --runs 1000000

mutants: $(STAMP)
	$(BIN)/python tests/mutants/run.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/fedpeft bench all

wheel: $(STAMP)
	$(BIN)/python -m build --wheel .

clean:
	rm -rf build dist runs .pytest_cache .ruff_cache .hypothesis .import_linter_cache
