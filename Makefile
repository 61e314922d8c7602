# Each target does its own set-up in .venv. The first one compiles llama.cpp, about 6 minutes of one core.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := torch==2.13.0
LLAMA := $(shell sed -n 's/.*"llama-cpp-python==\([0-9.]*\)".*/\1/p' pyproject.toml)

# Where the compiled llama-cpp-python wheel is kept. Safe to delete; then it is compiled anew. It holds the
# instructions of the processor that compiled it, so every kind of processor has a folder of its own. llama.cpp's image
# reader and the common code of its programs are not compiled: nothing here uses them. A wheel that has them is as good.
SAMPAN_WHEELS ?= build/wheels
CPU := $(shell { uname -m; grep -m 1 -E '^(flags|Features)' /proc/cpuinfo; } 2>/dev/null | cksum | cut -d ' ' -f 1)
SAMPAN_ANDROID ?= build/android-cache
WHEELS := $(SAMPAN_WHEELS)/$(CPU)

# The same for `make test-arm`: Debian packages and wheels for arm64, and llama.cpp, cross-compiled
SAMPAN_ARM ?= build/arm-cache

.PHONY: demo android-demo android-sanitized test test-all test-arm lint types bench docs clean

demo: $(VENV)/sampan
	$(BIN)/python examples/demo.py

# Each worker takes about 1 GB and its share of the processors. WORKERS=0: one process
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal

test: $(VENV)/test
	$(PYTEST) -m "not slow"

test-all: $(VENV)/test
	$(PYTEST)

# On an emulated aarch64, compared with this machine (Debian: qemu-user-static). The longest two tests are the first, and
# loadgroup gives each to a worker of its own.
test-arm: export SAMPAN_ARM := $(SAMPAN_ARM)
test-arm: export SAMPAN_ANDROID := $(SAMPAN_ANDROID)
test-arm: $(VENV)/test
	$(BIN)/python tests/arm/machine.py
	$(PYTEST) --dist=loadgroup --durations=12 -rP tests/arm/on_arm.py

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/lint $(VENV)/sampan
	$(BIN)/python tests/link_types.py build/types
	$(BIN)/mypy

# CHECKPOINT=folder of a model, such as Qwen2.5-Coder-1.5B-Instruct in bfloat16
bench: $(VENV)/test
	$(BIN)/python benchmarks/convert.py $(CHECKPOINT)

docs: $(VENV)/sampan
	$(BIN)/python docs/generate.py

# The app for Android phones in build/android. Its downloads and the compiled engine are kept in SAMPAN_ANDROID.
android-demo: $(VENV)/sampan
	SAMPAN_ANDROID=$(SAMPAN_ANDROID) $(BIN)/python android-demo/make/build.py

# The app's engine with sanitizers, for tests/fuzz/test_engine.py
android-sanitized: $(VENV)/bin/python
	SAMPAN_ANDROID=$(SAMPAN_ANDROID) $(BIN)/python android-demo/make/build.py sanitized

clean:
	rm -rf $(VENV) build

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sampan needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/llama: $(VENV)/bin/python pyproject.toml
	@mkdir -p $(WHEELS)
	@echo 'set(LLAMA_BUILD_COMMON OFF)' > $(WHEELS)/llama.cmake
	@ls $(WHEELS)/llama_cpp_python-$(LLAMA)-*.whl >/dev/null 2>&1 || { \
	  echo "Compiling llama.cpp (llama-cpp-python $(LLAMA) has no wheel on PyPI): about 6 minutes of one core, once."; \
	  CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(abspath $(WHEELS))/llama.cmake $$CMAKE_ARGS" \
	  $(PIP) wheel --quiet --no-cache-dir --no-deps --wheel-dir $(WHEELS) "llama-cpp-python==$(LLAMA)" & pid=$$!; start=$$(date +%s); \
	  while kill -0 $$pid 2>/dev/null; do sleep 1; now=$$(( $$(date +%s) - start )); \
	    [ $$((now % 30)) -ne 0 ] || echo "  compiling, $$now s"; done; wait $$pid; }
	$(PIP) install --quiet --find-links $(WHEELS) "llama-cpp-python==$(LLAMA)"
	@touch $@

$(VENV)/sampan: $(VENV)/llama pyproject.toml
	$(PIP) install --quiet --editable ".[gguf,onnx]"
	@touch $@

# torch first: a CPU build where the index offers one under this exact version
$(VENV)/test: $(VENV)/sampan pyproject.toml
	$(PIP) install --quiet "$(TORCH)"
	$(PIP) install --quiet --editable ".[test]"
	@touch $@

$(VENV)/lint: $(VENV)/bin/python pyproject.toml
	$(PIP) install --quiet mypy ruff numpy click types-PyYAML types-tqdm
	@touch $@
