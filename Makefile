# Two commands a newcomer needs: `make demo` and `make test`. Both build .venv on first use and are quick afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := $(VENV)/.installed-docs

.PHONY: demo test oldest lint docs bench clean

demo: $(STAMP)
	$(BIN)/sbi-flows pta compare --output pta-results

test: $(STAMP) lint docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The suite with the oldest versions that pyproject.toml allows. Old libraries warn about what is new beneath them: that is no fault of ours.
oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	$(PYTHON) scripts/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt -e '.[zarr]' pytest pytest-xdist
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 -W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning

lint: $(STAMP)
	$(BIN)/ruff check sbi_flows tests benchmarks scripts tutorials docs
	$(BIN)/lint-imports
	$(BIN)/mypy

# Warnings are errors: a page that names what is gone fails.
docs: $(DOCS)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# The editable install links the sources, so only a change of dependencies reinstalls.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,zarr]'
	touch $@

# Side by side with other packages, each in an environment of its own; hours. BENCH="evidence flows" runs some of the tables,
# QUICK=1 the smallest piece of each, to see that they run.
bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.all --python $(PYTHON) $(if $(QUICK),--quick) $(BENCH)

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest pta-results docs/_build
