# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
WORKSPACE ?=

.PHONY: quickstart test test-fast lint format generate clean

# pip, not uv: constraints.txt pins every package, torch by its exact CPU version.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip==26.3"
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable ".[dev]" --group operator
	touch $@

quickstart: .venv/installed
	$(BIN)/plumbline run manifests/samples/quickstart.yaml $(if $(WORKSPACE),--workspace $(WORKSPACE))

test: .venv/installed
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: .venv/installed
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not ray"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: .venv/installed
	$(BIN)/plumbline crd > manifests/crd/plumbline.dev_alignmentruns.yaml
	$(BIN)/plumbline crd --docs > docs/reference.md
	cp manifests/crd/plumbline.dev_alignmentruns.yaml charts/plumbline/files/crd.yaml
	$(BIN)/python manifests/render_install.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
