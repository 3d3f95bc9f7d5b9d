PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERNELS := $(wildcard csrc/*/*.cpp csrc/*/*.cu csrc/*/*.h)
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/xmplug-*/pyproject.toml))

# Peers have an environment of their own. ARGS: more options, for example ARGS="-k label_attention".
BENCH := .venv-bench
MEASURE = $(BENCH)/bin/python -m pytest bench -q --benchmark-only --benchmark-disable-gc --benchmark-quiet \
	-W ignore::DeprecationWarning $(ARGS)

# .venv with everything installed is made on the way; what has not changed is not made again.
.PHONY: help demo test builds sanitize lint bench bench-full clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/.installed ## train AttentionXML on the bundled corpus, evaluate it, tag unseen texts
	$(BIN)/xmplug demo

test: $(VENV)/.installed ## run the tests
	$(BIN)/python -m pytest -q

builds: $(VENV)/.installed ## build every package, install it into an environment of its own, use it, remove it
	$(BIN)/python -m pytest -q -m build tests/test_builds.py

# Kernels that check themselves are built apart, in a copy of the package, and pytest is called by its own name: as
# `python -m pytest` it would find the package, and the usual kernels, in this folder. Leaks are Python's own.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1
sanitize: $(VENV)/.installed ## run the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	XMPLUG_BUILD=cpu CXX=g++ CXXFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py --quiet build \
		--build-lib build/sanitize/lib --build-temp build/sanitize/temp
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONPATH=build/sanitize/lib XMPLUG_KERNELS=native $(BIN)/pytest -q -p no:cacheprovider --capture=sys tests/ops

lint: $(VENV)/.installed ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(KERNELS)

bench: $(BENCH)/.installed ## measure the kernels beside others, in 5 minutes: bench/results/kernels.md
	$(MEASURE) --benchmark-json=$(BENCH)/kernels.json
	$(BENCH)/bin/python bench/report.py $(BENCH)/kernels.json bench/results/kernels

bench-full: $(BENCH)/.installed ## all shapes and peers, training and prediction, in hours: bench/results/kernels-full.md
	$(MEASURE) --full --benchmark-json=$(BENCH)/kernels-full.json
	$(BENCH)/bin/python bench/report.py $(BENCH)/kernels-full.json bench/results/kernels-full

clean: ## remove everything made here, the virtual environment too
	rm -rf $(VENV) $(BENCH) build dist *.egg-info plugins/*/*.egg-info xmplug/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.dependencies: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement constraints.txt
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies pyproject.toml setup.py $(KERNELS) $(PLUGINS:%=%/pyproject.toml)
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt \
		--editable . $(PLUGINS:%=--editable %)
	touch $@

$(BENCH)/.installed: bench/requirements.txt pyproject.toml setup.py $(KERNELS) $(PLUGINS:%=%/pyproject.toml)
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --requirement bench/requirements.txt \
		--editable . $(PLUGINS:%=--editable %)
	touch $@
