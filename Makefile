# make demo       install, train fifteen small networks, draw the first figures
# make test       install linters and what tests need as well, lint, type-check, test
# make test-elsewhere VARIANT=all   the tests as others run them: another processor, folder, user; or one variant of tests/elsewhere
# make test-all   the slow tests too, and those of optional packages that can be installed
# make test-slurm sweeps on a real Slurm on this machine, with jobs that are killed and requeued; says what to install
# make test-versions  the tests on Python 3.11 to 3.14, with the oldest version of every package, with two versions of torch
#                 between, and with the newest of everything; installs several GB
# make results    every experiment that needs no download again, for results/reference: 1,900 networks, whose training takes
#                 about 40 hours of one core, two at a time. What is finished is kept
# make docs       the site, build/site/index.html
# make release BASE=https://github.com/OWNER/NAME   wheel and source archive in build/release/dist, tried in empty environments;
#                 nothing is uploaded
# make networks   train the networks of the doctor's specimens that are missing; remove a file to have it made again
# make bench      benchmarks/README.md's table, measured again (nothing else may run)
# make lock       constraints.txt: the versions of all packages. Those that stand there stay; remove a line to renew it
# `make demo PYTHON=python3.12` chooses the interpreter.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

.PHONY: demo test types committed test-elsewhere test-all test-slurm test-versions results docs release bench networks lock clean own-environment
.DELETE_ON_ERROR:

# An environment is of the clone whose bnlab is installed in it. That of another clone (a link, or a copied folder) would
# lose it to this one.
define REQUIRE_OWN
import sys
from importlib.metadata import distributions
from json import loads
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

for installed in distributions(name="bnlab"):
    origin = loads(installed.read_text("direct_url.json") or "{}").get("url")
    folder = origin and url2pathname(urlsplit(origin).path)
    if folder and Path(folder).resolve() != Path.cwd():
        sys.exit(f".venv is the environment of the clone in {folder}: remove it here (rm -r .venv, of a link rm .venv), and make again")
endef
export REQUIRE_OWN

own-environment:
	@test ! -x $(PY) || $(PY) -I -c "$$REQUIRE_OWN"

.venv/installed: pyproject.toml constraints.txt | own-environment
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bnlab needs Python 3.11 or newer, found " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	@test -x $(PY) || $(PYTHON) -m venv .venv
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

# One of the groups of optional packages that pyproject.toml lists; dev: linters, stubs and what tests need.
.venv/installed-%: .venv/installed
	$(PIP) install --quiet -c constraints.txt -e '.[$*]'
	@touch $@

demo: .venv/installed
	$(PY) -m bnlab sweep experiment=quickstart
	$(PY) -m bnlab report experiment=quickstart

test: .venv/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@$(MAKE) --no-print-directory -j 2 types committed
	$(PY) -m pytest -q -n 2 --dist loadfile

types: .venv/installed-dev
	$(PY) -m mypy

# What is committed agrees with what the code gives: examples, pages, quotes, links, programs, packages, sizes.
committed: .venv/installed-dev
	$(PY) -m docs.size --check
	OMP_NUM_THREADS=1 $(PY) -m pytest -q --doctest-modules bnlab
	$(PY) -m tests.checks

VARIANT ?= all
test-elsewhere: .venv/installed-dev
	@$(PY) -m tests.elsewhere $(VARIANT)

# Which tests each group of optional packages is for. Without the packages pytest skips these tests.
EXTRAS := zoo recipes real docs
TESTS_zoo := architectures of timm
TESTS_recipes := recipes for lightning, transformers, schedulefree, optuna, torchao and onnxruntime
TESTS_real := notebooks/real_networks.ipynb
TESTS_docs := the site

test-all: .venv/installed-dev
	@$(foreach extra,$(EXTRAS),$(MAKE) --no-print-directory .venv/installed-$(extra) \
		|| echo "left out, because .[$(extra)] cannot be installed: tests of $(TESTS_$(extra))";)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@$(MAKE) --no-print-directory -j 2 types committed
	$(PY) -m pytest -q -n 2 -m 'slow or not slow'

test-slurm: .venv/installed-dev
	@$(PY) -c 'import sys; from tests.slurm.cluster import describe_missing; sys.exit(describe_missing() or None)'
	$(PY) -m pytest -q -m slow tests/slurm

# The oldest version of every package that bnlab and its sweeps need, as constraints.
define WRITE_OLDEST
import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
lines = []
for requirement in [*project["dependencies"], *project["optional-dependencies"]["slurm"]]:
    bound = re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement)
    if bound:
        lines.append(f"{bound[1]}=={bound[2]}\n")
Path("build/oldest.txt").write_text("".join(lines), encoding="utf-8")
endef
export WRITE_OLDEST

# The interpreter of each environment, and which versions are asked for there. They are removed afterwards.
VERSIONS := python3.11,-cbuild/oldest.txt python3.12,torch==2.11.0,torchvision==0.26.0 \
	python3.13,torch==2.13.0,torchvision==0.28.0 python3.14

test-versions:
	@mkdir -p build
	@python3.11 -c "$$WRITE_OLDEST"
	for versions in $(VERSIONS); do \
		set -- $$(echo $$versions | tr , ' '); \
		echo "$$@"; \
		rm -rf .venv-versions && $$1 -m venv .venv-versions || exit 1; \
		shift; \
		.venv-versions/bin/python -m pip --disable-pip-version-check install --quiet -e '.[dev]' $$@ || exit 1; \
		OMP_NUM_THREADS=1 .venv-versions/bin/python -m pytest -q -n 2 -p no:cacheprovider --ignore tests/test_make.py || exit 1; \
		OMP_NUM_THREADS=1 .venv-versions/bin/python -m pytest -q -p no:cacheprovider --doctest-modules bnlab || exit 1; \
	done
	rm -rf .venv-versions

# Of fifteen seeds, not five: what most answers rest on.
FIFTEEN := quickstart gap accuracy accuracy_batches model_selection weight_averaging momentum tolerance few_images \
	few_images_predicted streams streams_epoch drift drift_terms variance shift predictive_digits settings

results: .venv/installed
	for name in $(filter-out cifar10% real%,$(basename $(notdir $(wildcard conf/experiment/*.yaml)))); do \
		case " $(FIFTEEN) " in *" $$name "*) seeds='seed=range(15)';; *) seeds=;; esac; \
		$(PY) -m bnlab sweep experiment=$$name results=results/reference hydra/launcher=joblib $$seeds || exit 1; \
	done
	$(PY) -m experiments.reference
	$(PY) -m bnlab report results=results/reference
	$(PY) -m bnlab report paper=all results=results/reference
	$(PY) -m experiments.literature

# A warning is an error: a link that leads nowhere, a page that no table of contents has.
docs: .venv/installed-docs
	$(PY) -m sphinx -W --keep-going -q -d build/doctrees docs build/site
	@echo build/site/index.html

release: .venv/installed-release
	$(PY) -m docs.release $(BASE)

bench: .venv/installed-bench
	$(PY) -m benchmarks

networks: .venv/installed-dev
	$(PY) -m pytest -q -n 0 -m 'slow or not slow' --train-networks tests/doctor tests/test_gallery.py tests/test_doctor_benchmark.py

# The report of pip's resolver becomes constraints.
define WRITE_CONSTRAINTS
import json
import sys
from pathlib import Path

report = json.loads(Path("build/lock.json").read_text(encoding="utf-8"))
versions = {}
for package in report["install"]:
    version = package["metadata"]["version"]
    versions[package["metadata"]["name"]] = version.partition("+")[0]
del versions["bnlab"]

python = f"{sys.version_info.major}.{sys.version_info.minor}"
lines = [
    f"# The versions that bnlab is tested with, of Python {python}. `make lock` writes them.",
    "# Of torch no build, such as +cpu, is named: pip picks the one that fits the machine.",
]
lines += [f"{name}=={versions[name]}" for name in sorted(versions, key=str.lower)]
Path("constraints.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
endef
export WRITE_CONSTRAINTS

lock: own-environment
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@mkdir -p build
	$(PIP) install --quiet --dry-run --ignore-installed --report build/lock.json -c constraints.txt \
		'.[slurm,tensorboard,dev,bench,zoo,recipes,real,docs,release]'
	@$(PY) -c "$$WRITE_CONSTRAINTS"

clean:
	rm -rf .venv build *.egg-info
