#!/usr/bin/env bash
# Everything that needs a GPU, in at most nine minutes and without a network: bench/gpu/run.sh OUT [WHEELS]
#
# Builds the CUDA extension for the card while the Triton suite runs, then the suite on the CUDA backend, the kernel and
# the end-to-end benchmarks, compute-sanitizer, and in the time that is left what takes long to compile: the most
# valuable first. What fails, takes too long or cannot run here stops nothing else; OUT/summary.txt says what became of
# each stage. OUT gets a handful of small files.
#
# WHEELS is a folder of wheels (make wheels) for what this machine lacks; nothing that is there is replaced.
# PYTHON=... names the interpreter that has torch. DEVICE=cpu rehearses the whole on a machine without a GPU.
set -u

readonly TOTAL=540            # seconds for everything
readonly LOG_BYTES=120000     # what is kept of a stage's output: its end

if (($# < 1 || $# > 2)); then
  echo "usage: bench/gpu/run.sh OUT [WHEELS]" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd)
WHEELS=${2:+$(cd "$2" 2>/dev/null && pwd)}
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
SCRATCH=$(mktemp -d)
BUILD=                        # process id of the build in the background
trap '[[ -n $BUILD ]] && kill "$BUILD" 2>/dev/null; rm -rf "$SCRATCH"' EXIT
export PYTHONPATH=$SCRATCH/site:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
: >"$OUT/summary.txt"
: >"$OUT/log.txt"

# --- stages ------------------------------------------------------------------------------------------------------

say() { printf '%3d s  %-22s %s\n' "$SECONDS" "$1" "$2" | tee -a "$OUT/summary.txt"; }

skip() { say "$1" "skipped: $2"; }

# The end of a stage's output, under its name.
keep() { { printf '\n===== %s =====\n' "$1"; tail -c "$LOG_BYTES" "$2"; } >>"$OUT/log.txt"; }

# verdict NAME CODE LOG: what became of a stage, in the words of its last line.
verdict() {
  local words
  words=$(grep -v '^[[:space:]]*$' "$3" | tail -n 1 | cut -c 1-160)
  case $2 in
    0) say "$1" "ok: $words" ;;
    124 | 137 | 143) say "$1" "ran out of time: $words" ;;
    *) say "$1" "failed ($2): $words" ;;
  esac
  keep "$1" "$3"
}

# stage NAME SECONDS COMMAND...: runs it, for as long as it may and the total allows.
stage() {
  local name=$1 limit=$2 left=$((TOTAL - SECONDS)) log
  shift 2
  log=$SCRATCH/${name// /-}.log
  ((left < limit)) && limit=$left
  if ((limit < 5)); then
    skip "$name" "no time left"
    return 1
  fi
  # As Ctrl-C does, so that the benchmarks write what they have.
  timeout --signal=INT --kill-after=10 "$limit" "$@" >"$log" 2>&1
  local code=$?
  verdict "$name" "$code" "$log"
  return "$code"
}

has() { command -v "$1" >/dev/null; }
can_import() { "$PYTHON" -c "import $1" >/dev/null 2>&1; }

# --- what is here ------------------------------------------------------------------------------------------------

# The wheels of what cannot be imported, beside torch and not instead of it.
install_wheels() {
  local module dist missing=()
  while read -r module dist; do
    "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$module') is None)" || missing+=("$dist")
  done <bench/gpu/wheels.txt
  if ((${#missing[@]} == 0)); then
    skip wheels "nothing is missing"
  elif [[ -z $WHEELS ]]; then
    skip wheels "no folder of wheels given; missing: ${missing[*]}"
  else
    stage wheels 40 "$PYTHON" -m pip install --disable-pip-version-check --no-index --no-deps --no-compile \
      --find-links "$WHEELS" --target "$SCRATCH/site" "${missing[@]}"
  fi
}

start_build() {
  if [[ $DEVICE != cuda ]]; then
    skip build "no GPU"
  elif ! has nvcc; then
    skip build "there is no nvcc"
  else
    LADDER_KERNELS_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c \
      'import torch; print("%d.%d" % torch.cuda.get_device_capability())') \
      timeout --kill-after=5 300 "$PYTHON" setup.py build_ext --inplace >"$SCRATCH/build.log" 2>&1 &
    BUILD=$!
  fi
}

# Returns whether the kernels are there. Waits for the build, but leaves time for what does not need it.
finish_build() {
  [[ -z $BUILD ]] && return 1
  while kill -0 "$BUILD" 2>/dev/null && ((SECONDS < 300)); do sleep 1; done
  kill "$BUILD" 2>/dev/null
  wait "$BUILD"
  local code=$?
  BUILD=
  verdict build "$code" "$SCRATCH/build.log"
  return "$code"
}

# --- what runs ---------------------------------------------------------------------------------------------------

# suite NAME SECONDS KEYWORDS FILES...
suite() {
  local name=$1 limit=$2 keywords=$3 parallel=()
  shift 3
  can_import xdist && parallel=(-n 8)
  # A broken backend must not use up the time of the others: forty failures say enough.
  stage "$name" "$limit" "$PYTHON" -m pytest -q -p no:cacheprovider --tb=short --maxfail=40 "${parallel[@]}" \
    -k "$keywords" "$@"
}

kernel_benchmark() {
  if ! can_import pytest_benchmark; then
    skip "kernel benchmark" "pytest-benchmark is not installed"
  else
    stage "kernel benchmark" 170 "$PYTHON" -m pytest bench -q -p no:cacheprovider --quick --results "$OUT/$NAME.csv"
  fi
}

# end_to_end NAME SECONDS FILE OPTIONS...
end_to_end() {
  local name=$1 limit=$2 results=$OUT/$3
  shift 3
  if ! can_import bench.careamics; then
    skip "$name" "CAREamics is not installed"
  else
    stage "$name" "$limit" "$PYTHON" -m bench.training --device "$DEVICE" --results "$results" "$@"
  fi
}

# Blocks of their own, uncached, so that a write past the end of a tensor is one past the end of an allocation.
sanitizer() {
  local tool
  if ! has compute-sanitizer; then
    skip sanitizer "there is no compute-sanitizer"
    return
  fi
  for tool in memcheck racecheck initcheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$PYTHON" -m bench.gpu.sanitizer_calls cuda
  done
}

if ! can_import torch; then
  say torch "failed: $PYTHON cannot import torch; name one that can in PYTHON"
  exit 1
fi
if [[ $DEVICE == cuda ]] && ! "$PYTHON" -c 'import torch; torch.zeros(1, device="cuda")' >/dev/null 2>&1; then
  skip "everything on a GPU" "torch sees none; DEVICE=cpu rehearses without"
  DEVICE=none
fi
MACHINE=$("$PYTHON" -c 'import re, torch; print(re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))' 2>/dev/null)
NAME=${MACHINE:-rehearsal}-$(date +%F)

install_wheels
stage info 30 "$PYTHON" -m ladder_kernels.info
start_build
case $DEVICE in
  cuda)
    # In float64, for every combination of gradients, Triton compiles some 1500 kernels: not before the rest has run.
    long='gradcheck or subset'
    step=(tests/test_{cuda_graph,functional,gradients,layouts,extremes,noise}.py)
    # Nothing of the CUDA backend either: it may come to be built between one worker's look at it and another's.
    suite "triton suite" 110 "not cpp and not cuda and not ($long) or cuda_graph and triton" \
      "${step[@]}" tests/test_triton.py
    if finish_build; then
      suite "cuda suite" 70 "cuda and not cpp" \
        "${step[@]}" tests/test_cuda_build.py
    else
      skip "cuda suite" "the kernels are not built"
    fi
    kernel_benchmark
    end_to_end "end to end" 130 "$NAME-train.csv" --quick
    if [[ -f ladder_kernels/libladder_kernels_cuda.so ]]; then sanitizer; else skip sanitizer "the kernels are not built"; fi
    end_to_end "compiled" 200 "compiled-$NAME-train.csv" --rounds 20 --precision fp32
    suite "triton gradients" 200 "triton and ($long)" tests/test_gradients.py
    ;;
  cpu)
    suite "suite" 60 "known_answer or lanes" tests/test_noise.py
    kernel_benchmark
    end_to_end "end to end" 170 "$NAME-train.csv" --quick --batch 1 --patch 32 --rounds 1 --precision fp32
    stage "calls" 30 "$PYTHON" -m bench.gpu.sanitizer_calls torch
    ;;
  none) skip "all stages" "no GPU" ;;
esac
say end "written: $(cd "$OUT" && echo *)"
