# make demo     fine-tune, evaluate and score real text here; leaves runs/demo/report.html
# make test     the tests, side by side; but for those of make journeys, make chaos and make lint
# make journeys whole commands, pages and notebooks as users run them, each for half a minute or more
# make unit     the tests that need no Ray, in random order, but for the slow ones; takes about a minute
# make lint     ruff, mypy, the order of the packages, the words of docstrings and documents
# make lock     renews constraints.txt; LOCK=FILE writes another file
# make docs     the documentation site, in site/
# make benchmark  speed against what else scores text, on the demo's bundle and texts; takes about 13 minutes
# make chaos    kills what scores at random, with one model, two and a cascade, for MINUTES each into a folder or a store,
#               what trains and what searches, and compares what comes out with undisturbed runs; submits jobs to two nodes, and plays twelve nights there;
#               scores corpora made at random for MINUTES; CHAOS chooses some of these files
#
# Each sets up what it needs in .venv, with the versions of constraints.txt. PYTHON chooses the interpreter.

PYTHON ?= python3
MINUTES ?= 10
CHAOS ?= tests/chaos tests/scoring/test_fuzz.py
LOCK ?= constraints.txt
RULES = tests/test_structure.py tests/test_words.py
# one process for each core; the tests that need Ray keep to two of them, see tests/conftest.py
# and with a thread each: threads of two processes that wait for each other take thrice the time
SIDE_BY_SIDE = -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test unit journeys chaos lint lock docs benchmark format clean

demo: .venv/.demo
	.venv/bin/python jobs/demo.py

test: .venv/.test
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest $(SIDE_BY_SIDE) -p no:randomly --durations=15 -m "not journey" $(RULES:%=--ignore=%)

unit: .venv/.test
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest $(SIDE_BY_SIDE) -m "not ray and not slow and not journey and not chaos" $(RULES:%=--ignore=%)

journeys: .venv/.test
	.venv/bin/python -m pytest -p no:randomly --durations=15 -m journey $(RULES:%=--ignore=%)

chaos: .venv/.test
	.venv/bin/python -m pytest -p no:randomly -s --chaos-minutes=$(MINUTES) $(CHAOS)

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -q -p no:randomly --noconftest $(RULES)

# torch stays at its pin. Constraints of packages that nothing installs, such as CUDA's, do no harm.
lock: .venv/.dev
	grep '^torch==' constraints.txt | .venv/bin/uv pip compile --quiet --all-extras --upgrade --no-annotate --no-header \
		--python .venv/bin/python --constraint - pyproject.toml > $(LOCK).new
	{ echo "# Versions that make installs. Renewed by 'make lock'."; sed 's/+cpu$$//' $(LOCK).new; } > $(LOCK)
	rm $(LOCK).new

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

benchmark: .venv/.benchmark
	test -d runs/demo/bundle || $(MAKE) demo
	.venv/bin/python benchmarks/run.py

format: .venv/.dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: $(PYTHON) is not Python 3.11 to 3.13; run make with PYTHON=python3.12 or the like" >&2; exit 2; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# .venv/.demo, .venv/.test, .venv/.dev, .venv/.docs: that the extra of this name is installed
.venv/.%: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[$*]'
	@touch $@

clean:
	rm -rf .venv runs site
