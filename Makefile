# Needs make and Python 3.11 or 3.12; everything else is installed into .venv.
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What Python compiles is kept, whatever the shell says: the tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-kernels lint wheel bench bench-search bench-ablation bench-peers bench-perf-analyzer bench-ci prove-gate prove-pairs clean bench-kernels

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## set up .venv with everything

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed; name it with make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@# Python compiles the modules that it imports; pip would compile all 20,000, which takes a minute.
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check -q -c constraints.txt -e '.[demo,dev]'
	@touch $@

demo: install  ## train, compile, gate, publish, serve and ask, on the data that the project carries
	$(BIN)/lepto workload demo

# A module's tests share what they compile, so that modules go to the workers whole.
test: install  ## run the tests: modules on two workers, then what must have the machine for itself
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=30 -m 'not thorough and not alone'
	$(BIN)/python -m pytest -m 'alone and not thorough'

test-kernels: install  ## run all tests of the kernels, also those that `make test` leaves out
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/kernels tests/compiler/test_lepto_attention.py -m 'thorough or not thorough'

lint: install  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# The folders are named after lepto's parts; mypy finds them below a folder named lepto.
	@mkdir -p build/types && ln -sfn ../.. build/types/lepto
	cd build/types && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		-p lepto.runtime -p lepto.kernels -p lepto.compiler -p lepto.benchmarks

wheel: install  ## build the wheel into dist/
	$(BIN)/python -m build --wheel --outdir dist .

bench: install  ## compile a real model, time it and store the result in benchmarks/baselines/
	$(BIN)/python -m lepto.benchmarks.road

bench-search: install  ## the default search on several data sets; the result is stored
	$(BIN)/python -m lepto.benchmarks.searches

bench-ablation: install  ## what each pass of a search bought, measured; the result is stored
	$(BIN)/python -m lepto.benchmarks.ablation

bench-kernels: install  ## attention against PyTorch's own on an NVIDIA GPU; the result is stored
	$(BIN)/python -m lepto.benchmarks.kernels

bench-peers: install  ## other tools on the same model, side by side (PACKAGES="out/a out/b" adds packages)
	$(BIN)/python -m lepto.benchmarks.peers $(foreach package,$(PACKAGES),--package $(package))

bench-perf-analyzer: install  ## an independent client beside ours on a served model (PACKAGE=out/a TEXTS=test.csv); the result is stored
	$(BIN)/python -m lepto.benchmarks.independent $(PACKAGE) --texts $(TEXTS)

bench-ci: install  ## the workflows of benchmarks/ci/, step by step in fresh clones (PACKAGE=out/a EVAL=test.csv LABEL=label); the result is stored
	$(BIN)/python -m lepto.benchmarks.workflows $(PACKAGE) --data $(EVAL) --label-column $(or $(LABEL),label)

prove-gate: install  ## how often the gate is wrong: A/A and injected regressions; about 20 minutes; the result is stored
	$(BIN)/python -m lepto.benchmarks.proof

prove-pairs: install  ## the gate's verdicts on real pairs whose verdict is known; the result is stored
	$(BIN)/python -m lepto.benchmarks.real_pairs

clean:  ## remove what was built, but no model repository
	rm -rf $(VENV) build dist *.egg-info
