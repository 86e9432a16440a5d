# make demo       install, train fifteen small networks, draw the first figures
# make test       install, lint, type-check, test
# make test-all   the slow tests too
# make results    every experiment that needs no download again, for results/reference; hours. What is finished is kept
# make bench      benchmarks/README.md's table, measured again (nothing else may run)
# `make demo PYTHON=python3.12` chooses the interpreter.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

.PHONY: demo test test-all results bench clean
.DELETE_ON_ERROR:

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bnlab needs Python 3.11 or newer, found " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	@test -x $(PY) || $(PYTHON) -m venv .venv
	$(PIP) install --quiet -c constraints.txt -e '.[harness,dev]'
	@touch $@

.venv/installed-bench: .venv/installed
	$(PIP) install --quiet -c constraints.txt -e '.[harness,dev,bench]'
	@touch $@

.venv/installed-zoo: .venv/installed
	$(PIP) install --quiet -c constraints.txt -e '.[harness,dev,zoo]'
	@touch $@

demo: .venv/installed
	$(PY) -m experiments.sweep experiment=quickstart
	$(PY) -m experiments.report experiment=quickstart

test: .venv/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q -n 2

test-all: .venv/installed-zoo
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q -n 2 -m 'slow or not slow'

# Of fifteen seeds, not five: what most answers rest on.
FIFTEEN := quickstart gap accuracy accuracy_batches model_selection weight_averaging momentum tolerance few_images \
	few_images_predicted streams streams_epoch drift drift_terms start variance shift predictive_digits settings \
	norms_digits

results: .venv/installed
	for name in $(filter-out cifar10%,$(basename $(notdir $(wildcard conf/experiment/*.yaml)))); do \
		case " $(FIFTEEN) " in *" $$name "*) seeds='seed=range(15)';; *) seeds=;; esac; \
		$(PY) -m experiments.sweep experiment=$$name results=results/reference hydra/launcher=joblib $$seeds || exit 1; \
	done
	$(PY) -m experiments.reference
	$(PY) -m experiments.report results=results/reference

bench: .venv/installed-bench
	$(PY) -m benchmarks

clean:
	rm -rf .venv build *.egg-info
