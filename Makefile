# `make demo` and `make test` start from a clone: each makes its own environment.
PYTHON ?= python3
WORKERS ?= 2
PIP = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Shared cores: two BLAS threads in each of two workers are slower than one.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export MPLBACKEND ?= Agg

.PHONY: demo test lint types bench docs clean

demo: .venv-demo/installed
	.venv-demo/bin/python notebooks/demo.py

test: .venv/installed
	.venv/bin/python -m pytest -n $(WORKERS)

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/installed
	.venv/bin/mypy

bench: .venv-bench/installed
	.venv-bench/bin/python benchmarks/regression.py $(BENCH)
	.venv-bench/bin/python benchmarks/mixed.py $(BENCH)
	.venv-bench/bin/python benchmarks/trajectory.py $(BENCH)

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --site-dir site

.venv-demo/installed: EXTRAS = data,plots
.venv/installed: EXTRAS = dev
.venv-bench/installed: EXTRAS = bench
.venv-docs/installed: EXTRAS = docs

%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $*
	$*/bin/python $(PIP) --editable ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-bench .venv-docs site build dist demo_output
	rm -rf .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
