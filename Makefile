# make report   predict the DeepSeek-V3 suite on the chips it is served on, from a bare Python to report/report.html
# make test     install for development and run the tests
# make kernels  compile every kernel of the measurement bundles for three architectures (half an hour each; TileLang and nvcc)
# Override the interpreter with PYTHON=…, the environment with VENV=…, the folder with REPORT=…, the chips with CHIPS=a,b,…,
# the test processes with JOBS=N (one a core).
# EXTRAS=dev,tilelang adds TileLang and torch to what is installed, and the tests that need them.

.POSIX:

PYTHON = python3
VENV = .venv
REPORT = report
SUITE = deepseek-v3
CHIPS = h20,h100-sxm5-80gb,h200-sxm,h800-sxm,b200-sxm,b300-sxm,gb300,a100-sxm4-80gb,l40s,rtx-pro-6000,amd-mi300x,amd-mi355x,ascend-910c,ascend-950pr,metax-c550,mthreads-s5000,hygon-bw1000,kunlunxin-p800
PYTEST_ARGS =
BUNDLE = operators
BUNDLES = bundles
JOBS = auto
EXTRAS = dev
ROOMS = api calibration hwmodels kernels simulator

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: all report test lint bench kernels clean

all: test

# A stamp is newer than what it was made from, so a second run does nothing twice.
$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml
	rm -rf build $(VENV)/.development*
	$(PIP) install .
	touch $@

# One stamp for each set of extras: asking for more installs more.
$(VENV)/.development-$(EXTRAS): $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) install --editable '.[$(EXTRAS)]' --constraint constraints.txt
	touch $@ $(VENV)/.development $(VENV)/.installed

# A report shows what the sources say now: what changed since the last installation is installed again.
report: $(VENV)/.installed
	@if [ ! -e $(VENV)/.development ] && [ -n "$$(find $(ROOMS) -type f ! -name '*.pyc' -newer $(VENV)/.installed)" ]; then \
	  rm -rf build && $(PIP) install --no-deps --force-reinstall . && touch $(VENV)/.installed; fi
	$(BIN)/foretile compare --suite $(SUITE) --chips $(CHIPS) --out $(REPORT)
	@echo "Open $(REPORT)/report.html"

test: $(VENV)/.development-$(EXTRAS)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.development-$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.development-$(EXTRAS)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only $(PYTEST_ARGS)

# What is compiled already is kept in $FORETILE_CACHE: an interrupted build goes on where it stopped.
kernels: $(VENV)/.installed
	$(PIP) install '.[tilelang]'
	mkdir -p $(BUNDLES)
	for arch in sm_80 sm_90a sm_100a; do \
	  $(BIN)/foretile bundle build $(BUNDLE) --arch $$arch --out $(BUNDLES)/$(BUNDLE)-$$arch.bundle --jobs 2 && \
	  $(BIN)/foretile bundle check $(BUNDLES)/$(BUNDLE)-$$arch.bundle || exit 1; done

clean:
	rm -rf $(VENV) $(REPORT) build dist foretile.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
