# Two commands do everything: `make demo` and `make test`. Each installs what it needs and is quick when repeated.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
OLD_VENV := .venv-jax0.11
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
JAX_VERSION := 0.12.0.1
OLD_JAX_VERSION := 0.11.2
CUDA_PACKAGES = jax-cuda13-plugin==$(1) jax-cuda13-pjrt==$(1)
export JAX_PLATFORMS ?= cpu

.PHONY: help
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

# --- set-up -----------------------------------------------------------------------------------------------

build/.mlir: third_party/install-mlir.sh
	@third_party/install-mlir.sh
	@mkdir -p build && touch $@

$(VENV)/.made: pyproject.toml Makefile third_party/find-python.sh
	@test -x $(PY) || "$$(third_party/find-python.sh 3.13 3.12)" -m venv $(VENV)
	@test -x $(UV) || $(PY) -m pip install -q --disable-pip-version-check uv
	@$(UV) pip install -q -p $(VENV) --group build --group test --group lint "jax==$(JAX_VERSION)" flatbuffers rich protobuf platformdirs
	@# Only cuDNN's own wheel: a compile needs neither cuBLAS nor the driver (1 GB saved).
	@$(UV) pip install -q -p $(VENV) --no-deps $(call CUDA_PACKAGES,$(JAX_VERSION)) nvidia-cudnn-cu13
	@$(UV) pip install -q -p $(VENV) --no-build-isolation -e ".[bench,plot,cluster]" -C wheel.cmake=false -C wheel.py-api=py3 -C editable.mode=inplace
	@touch $@

$(OLD_VENV)/.made: pyproject.toml Makefile third_party/find-python.sh $(VENV)/.made
	@test -x $(OLD_VENV)/bin/python || "$$(third_party/find-python.sh 3.12)" -m venv $(OLD_VENV)
	@$(UV) pip install -q -p $(OLD_VENV) --group build --group test "jax==$(OLD_JAX_VERSION)" flatbuffers rich protobuf platformdirs
	@$(UV) pip install -q -p $(OLD_VENV) --no-deps $(call CUDA_PACKAGES,$(OLD_JAX_VERSION)) nvidia-cudnn-cu13
	@$(UV) pip install -q -p $(OLD_VENV) --no-build-isolation -e ".[bench,plot,cluster]" -C wheel.cmake=false -C wheel.py-api=py3 -C editable.mode=inplace
	@touch $@

.PHONY: setup
setup: $(VENV)/.made ## the virtual environment

.PHONY: build
build: build/.mlir $(VENV)/.made ## the extension and farrier-opt, into python/farrier
	@test -f build/dev/build.ninja || $(VENV)/bin/cmake -S . -B build/dev -G Ninja -DFARRIER_INPLACE=ON \
	  -DPython_EXECUTABLE=$(CURDIR)/$(PY) -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja > build/configure.log \
	  || { cat build/configure.log; exit 1; }
	@$(VENV)/bin/cmake --build build/dev > build/build.log || { cat build/build.log; exit 1; }

# --- what people run --------------------------------------------------------------------------------------

.PHONY: demo
demo: build ## an LLM train step brought under a memory budget for an H100
	@PYTHONPATH=benchmarks $(PY) benchmarks/demo.py

.PHONY: lit
lit: build ## the FileCheck tests
	@$(VENV)/bin/lit -q tests/lit

.PHONY: pytest
pytest: build ## the Python tests on the newest supported jax
	@$(PY) -m pytest -q -n 2

# What touches jax's internals. Everything else is the same code on both; `make pytest-old-all` runs it too.
OLD_TESTS = $(addprefix tests/python/test_,$(addsuffix .py,\
  bindings dialect everywhere interchange optimize options oracle plan primitive remat search stages targets versions))

.PHONY: pytest-old
pytest-old: build $(OLD_VENV)/.made ## what depends on jax itself, on the oldest supported jax
	@$(OLD_VENV)/bin/python -m pytest -q -n 2 $(OLD_TESTS)

.PHONY: pytest-old-all
pytest-old-all: build $(OLD_VENV)/.made ## the whole suite on the oldest supported jax
	@$(OLD_VENV)/bin/python -m pytest -q -n 2

# --- sanitizers -------------------------------------------------------------------------------------------

ASAN := $(CURDIR)/build/asan
CLANG = $(or $(shell command -v clang++-22),/usr/lib/llvm-22/bin/clang++)
# User poisoning is off because LLVM's allocators, compiled into both, poison only in what was instrumented.
ASAN_SETTINGS := allow_user_poisoning=0:detect_stack_use_after_return=0:quarantine_size_mb=64
ASAN_RUNTIME = $$($(CLANG) -print-file-name=libclang_rt.asan-$$(uname -m).so)
# Python and jaxlib never free what lives as long as the process. JAX's plugin for GPUs ends a process with the runtime.
# The runtime's dlopen looks nowhere near the library that asks: cuDNN, whose version JAX reads, is named.
SANITIZED = JAX_PLATFORMS=cpu LD_LIBRARY_PATH=$(wildcard $(CURDIR)/$(VENV)/lib/python3*/site-packages/nvidia/cudnn/lib) \
  PYTHONPATH=$(CURDIR)/tests/sanitize:$(ASAN)/python ASAN_OPTIONS=$(ASAN_SETTINGS):detect_leaks=0 LD_PRELOAD=$(ASAN_RUNTIME)

# What runs the C++ a lot. Left out: what waits for XLA:GPU, and what limits its own address space (hlo-opt's child, the
# damaged inputs), which the sanitizer's shadow memory exceeds; the fuzzer stands for those.
SANITIZED_TESTS = $(addprefix tests/python/test_,$(addsuffix .py,bindings dialect fusion_pass fusion_stacks remat \
  remat_loops remat_sharding schedule collectives_passes collectives_groups report_memory optimize_programs trust_programs))

.PHONY: build-sanitize
build-sanitize: build/.mlir $(VENV)/.made
	@test -n "$$(ls $$($(CLANG) -print-resource-dir)/lib/*/libclang_rt.fuzzer* 2> /dev/null)" \
	  || apt-get install -y -q --no-install-recommends clang-22 libclang-rt-22-dev
	@test -f $(ASAN)/build.ninja || $(VENV)/bin/cmake -S . -B $(ASAN) -G Ninja -DFARRIER_SANITIZE=ON \
	  -DCMAKE_CXX_COMPILER=$(CLANG) -DCMAKE_C_COMPILER=$(subst clang++,clang,$(CLANG)) -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
	  -DPython_EXECUTABLE=$(CURDIR)/$(PY) -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja > build/configure.log \
	  || { cat build/configure.log; exit 1; }
	@$(VENV)/bin/cmake --build $(ASAN) > build/build.log || { cat build/build.log; exit 1; }
	@cd python && git ls-files -z farrier | xargs -0 cp -u --parents -t $(ASAN)/python

.PHONY: sanitize
sanitize: build-sanitize ## the tests on C++ built with the address and undefined-behaviour sanitizers
	@ASAN_OPTIONS=$(ASAN_SETTINGS) $(VENV)/bin/lit -q tests/lit --param farrier-opt=$(ASAN)/python/farrier/_bin/farrier-opt
	@$(SANITIZED) $(PY) -m pytest -q $(SANITIZED_TESTS) -k "not half_a_second and not bounded_time" # slower here

.PHONY: fuzz
fuzz: build-sanitize ## libFuzzer on the parser and every pipeline: make fuzz SECONDS=900
	@PYTHONPATH=$(CURDIR)/tests:$(CURDIR)/python $(PY) -m trust.seeds build/fuzz/seeds
	@mkdir -p build/fuzz/corpus
	@cd build/fuzz && ASAN_OPTIONS=$(ASAN_SETTINGS) LD_PRELOAD=$(ASAN_RUNTIME) $(ASAN)/cpp/tools/farrier-fuzz corpus seeds -dict=seeds.dict \
	  -max_total_time=$(or $(SECONDS),900) -timeout=10 -rss_limit_mb=4096 -max_len=16384 -print_final_stats=1

.PHONY: test
test: lint lit pytest pytest-old ## every test

.PHONY: stubs
stubs: build ## python/farrier/_core.pyi, from the extension
	@$(PY) -m nanobind.stubgen -m farrier._core -q -o python/farrier/_core.pyi

.PHONY: docs
docs: $(VENV)/.made ## docs/passes.md, from the .td files
	@$(PY) docs/generate-passes.py

.PHONY: new-pass
new-pass: $(VENV)/.made ## lay out a pass: make new-pass NAME=my-pass
	@$(PY) passes/new-pass.py "$(NAME)"

.PHONY: browser
browser: build ## the report's page in headless Chromium (installs it on Debian)
	@command -v chromedriver > /dev/null || apt-get install -y -q --no-install-recommends chromium chromium-driver
	@$(UV) pip install -q -p $(VENV) --group browser
	@$(PY) -m pytest -q -m browser tests/python/test_report_browser.py

.PHONY: trace-processor
trace-processor: build ## the Perfetto trace, asked by Perfetto's own trace processor (its package downloads that)
	@$(PY) -m pytest -q -m trace_processor tests/python/test_report_forms.py

.PHONY: lint
lint: $(VENV)/.made ## check style
	@$(VENV)/bin/ruff check -q . && $(VENV)/bin/ruff format -q --check .

.PHONY: format
format: $(VENV)/.made ## format Python and C++
	@$(VENV)/bin/ruff check -q --fix . ; $(VENV)/bin/ruff format -q .
	@git ls-files '*.cpp' '*.h' | xargs $$(command -v clang-format-22 || command -v clang-format) -i

.PHONY: wheel
wheel: build/.mlir $(VENV)/.made ## the abi3 wheel, into dist/
	@$(UV) build -q --wheel --no-build-isolation -p $(PY) -o dist

.PHONY: clean
clean: ## remove everything that was built
	rm -rf build dist $(VENV) $(OLD_VENV) python/farrier/_bin python/farrier/*.so
