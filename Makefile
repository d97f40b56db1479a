# The doors. Each sets up first what it needs; `make setup` does nothing when nothing changed.
python := .venv/bin/python

.PHONY: setup demo test check clean

# WITH=voxel: spconv as well, for voxel teachers; on a GPU WITH=voxel-cu126 or what fits its torch (docs/your-data.md).
setup:
	@PYTHON="$(PYTHON)" WITH="$(WITH)" .ci/setup

demo: setup
	@$(python) -m demo.pipeline demo-output

test: setup
	@$(python) -m pytest -q --numprocesses=logical --maxprocesses=8 --durations=10

check: setup
	@$(python) -m ruff format --check .
	@$(python) -m ruff check .
	@.venv/bin/lint-imports --no-logo
	@$(python) -m mypy
	@$(python) -m pytest -q tests/test_docs.py tests/test_tensor_shapes.py
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --quiet --strict --site-dir build/site

clean:
	rm -rf demo-output build .mypy_cache .pytest_cache .ruff_cache
