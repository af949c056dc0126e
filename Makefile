# Two commands matter: `make demo` and `make test`. Both create .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo examples mmse test versions bench train lint types audit hostcost wheels readme info cuda gpu sanitize fresh dist clean

# The compiled code of csrc/cpu under AddressSanitizer and UndefinedBehaviorSanitizer. GCC's C++ library is loaded early as
# well, or the sanitizer misses torch's exceptions; Python itself leaks by design.
SANITIZED := $(CURDIR)/out/sanitize/ladder_kernels/libladder_kernels_cpu.so
SANITIZERS := -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined
SANITIZED_PYTHON = LADDER_KERNELS_CPU_LIBRARY=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" $(BIN)/python
# The tests that reach these kernels: neither the torch backend's nor interpreted Triton's do, and processes that talk through
# gloo, which has once been seen to abort at its end under the sanitizer, reach no other ones.
SANITIZED_TESTS := $(patsubst %,tests/test_%.py,cpp functional gradients layouts extremes arguments variance noise block overrides \
  data params)

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

# The pinned set of constraints.txt, and the package itself in place with its CPU kernels. Again only when these change.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make needs Python 3.11 or newer (CAREamics does); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel
	LADDER_KERNELS_BUILD_CPU=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  --no-build-isolation -e '.[triton,demo,test,bench,dev]'
	@touch $@

demo: $(INSTALLED)  ## train the real CAREamics model with both blocks, show the difference; ARGS="--steps 50"
	$(BIN)/python -m bench.demo $(ARGS)

examples: $(INSTALLED)  ## run examples/*.py whole, some minutes each: pictures in out/examples; STEPS=20 for a look
	for example in examples/*.py; do echo "== $$example" && $(BIN)/python $$example || exit 1; done

# Every test has one thread, so the cores share the tests.
test: $(INSTALLED)  ## run the test suite; ARGS="-k philox"
	$(BIN)/python -m pytest -n logical --dist worksteal $(ARGS)

versions: $(INSTALLED)  ## tests with other Pythons, PyTorches, Tritons and CAREamics: noxfile.py. ARGS=--list
	$(BIN)/python -m nox $(ARGS)

bench: $(INSTALLED)  ## time every kernel beside upstream, writes bench/results/<machine>-<date>.csv; ARGS="-k level"
	$(BIN)/python -m pytest bench -r fE --benchmark-columns=median,iqr,rounds --benchmark-sort=name $(ARGS)

lint: $(INSTALLED)  ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy
	$(BIN)/mypy

audit: cuda  ## what the GPU kernels cost, read from their machine code; needs no GPU. ARGS=--check compares
	$(BIN)/python -m bench.audit $(ARGS)

hostcost: $(INSTALLED)  ## microseconds a tiny step takes, upstream and every backend; needs no GPU. ARGS=--quick
	$(BIN)/python -m bench.hostcost $(ARGS)

cuda: $(INSTALLED)  ## build the CUDA kernels; needs nvcc, no GPU. TORCH_CUDA_ARCH_LIST="9.0"; without it 8.0, 9.0, 10.0
	LADDER_KERNELS_BUILD_CUDA=1 $(BIN)/python setup.py --quiet build_ext --inplace

sanitize: $(INSTALLED)  ## the CPU kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	CXXFLAGS="$(SANITIZERS)" LDFLAGS="$(SANITIZERS)" LADDER_KERNELS_BUILD_CPU=1 \
	  $(BIN)/python setup.py --quiet build_ext --build-lib out/sanitize --build-temp out/sanitize/temp
	$(SANITIZED_PYTHON) -m pytest -n logical --dist worksteal --capture=sys -p no:cacheprovider \
	  -k "not triton and not distributed and not [torch- and not [torch]" $(SANITIZED_TESTS) $(ARGS)

FRESH := out/fresh
FRESH_TORCH := torch==2.13.0
fresh: $(INSTALLED)  ## the README's installation, from an sdist in an empty environment, beside another torch
	rm -rf $(FRESH)
	$(BIN)/python setup.py --quiet sdist --formats=gztar --dist-dir $(FRESH)
	tar -xzf $(FRESH)/*.tar.gz -C $(FRESH) --strip-components=1
	sed -n '/^```sh$$/,/^```$$/p' README.md | grep -v '^```' >$(FRESH)/commands
	echo $(FRESH_TORCH) >$(FRESH)/constraints.txt
	$(PYTHON) -m venv $(FRESH)/venv
	cd $(FRESH) && . venv/bin/activate && PIP_QUIET=1 PIP_CONSTRAINT=constraints.txt sh -ex commands
	cd $(FRESH) && LADDER_KERNELS_BACKEND=cpp venv/bin/python -P -c \
	  'import ladder_kernels, torch; print("cpp runs:", ladder_kernels.normal_sample(torch.zeros(1, 2, 1), seed=1))'

dist: $(INSTALLED)  ## out/dist: an sdist and a wheel with the CPU's kernels, tried beside the lowest and the highest torch
	$(BIN)/python -m nox -s dist $(ARGS)

readme: $(INSTALLED)  ## tables and figures of README and docs/performance.md from bench/results. ARGS=--check compares
	$(BIN)/python -m bench.report.pages $(ARGS)

train: $(INSTALLED)  ## time of a step of the real CAREamics model, with both blocks; ARGS=--quick
	$(BIN)/python -m bench.training $(ARGS)

mmse: $(INSTALLED)  ## time and memory of the mean of 16 predictions of an image, upstream's loop and ours; ARGS=--quick
	$(BIN)/python -m bench.mmse $(ARGS)

WHEEL_PLATFORMS := manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
wheels: $(INSTALLED)  ## out/wheels: what CAREamics needs on a GPU machine without a network (Python 3.12, x86-64)
	rm -rf out/wheels
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
	  --implementation cp $(WHEEL_PLATFORMS:%=--platform %) -c constraints.txt -d out/wheels -r bench/wheels.txt
	@du -sh out/wheels

# What fails or takes longer than its seconds stops nothing; ten minutes at most in all, the most valuable first. It needs
# torch in PYTHON, and no network: CAREamics comes from out/wheels where it is not installed. Without gradcheck: in float64,
# for every combination of gradients, Triton compiles some 1500 kernels.
OUT ?= out/gpu
DEVICE ?= cuda
AT_MOST := timeout --signal=INT --kill-after=10
HERE = env PYTHONPATH=$(CURDIR)/out/site:$(CURDIR) $(PYTHON)
TO = >>$(OUT)/log.txt 2>&1
SMALL = $(if $(filter cpu,$(DEVICE)),--batch 1 --patch 32 --rounds 2)
SANITIZER := PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(AT_MOST) 40 compute-sanitizer --error-exitcode 1
STEP_TESTS := $(patsubst %,tests/test_%.py,cuda_graph functional gradients layouts extremes noise)
PYTEST = $(HERE) -m pytest -q -p no:cacheprovider --tb=short --maxfail=40 $(if $(filter cuda,$(DEVICE)),-n 8)
gpu:  ## all that needs a GPU, with the PYTHON that is there, into OUT=out/gpu; DEVICE=cpu rehearses it
	mkdir -p $(OUT)
	-test ! -d out/wheels || $(PYTHON) -m pip install --quiet --no-index --no-deps --target out/site out/wheels/*.whl $(TO)
	-$(AT_MOST) 20 $(HERE) -m ladder_kernels.info $(TO)
ifeq ($(DEVICE),cuda)
	-LADDER_KERNELS_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 $(AT_MOST) 100 $(PYTHON) setup.py --quiet build_ext --inplace $(TO)
	-$(AT_MOST) 100 $(PYTEST) -k "triton and not gradcheck and not subset" $(STEP_TESTS) tests/test_triton.py $(TO)
	-$(AT_MOST) 60 $(PYTEST) -k "cuda and not cpp" $(STEP_TESTS) tests/test_cuda_build.py $(TO)
else
	-$(AT_MOST) 60 $(PYTEST) -k "known_answer or lanes" tests/test_noise.py $(TO)
endif
	-$(AT_MOST) 130 $(HERE) -m pytest bench -q --quick --device $(DEVICE) --results $(OUT)/kernels.csv $(TO)
	-$(AT_MOST) 90 $(HERE) -m bench.training --quick --device $(DEVICE) --results $(OUT)/train.csv $(SMALL) $(TO)
ifeq ($(DEVICE),cuda)
	-$(SANITIZER) --tool memcheck $(HERE) -m tests.sanitizer_calls $(TO)
	-$(SANITIZER) --tool racecheck $(HERE) -m tests.sanitizer_calls $(TO)
else
	-$(AT_MOST) 30 $(HERE) -m tests.sanitizer_calls torch $(TO)
endif

info: $(INSTALLED)  ## versions, devices, and which backend is usable or why not
	$(BIN)/python -m ladder_kernels.info

clean:  ## remove the environment and everything built
	rm -rf $(VENV) out *.egg-info
