// The kernels of each instruction set, and the choice among them.
#pragma once

#include <cstddef>

#include "plan.h"

namespace ladder_kernels::cpu {

// Each works on units [begin, end) of the grid in the calling thread, and wants `scratch_size` bytes to do it.
struct Kernels {
  void (*forward)(const Forward&, std::int64_t begin, std::int64_t end, void* scratch);
  void (*backward)(const Backward&, std::int64_t begin, std::int64_t end, void* scratch);
  std::size_t scratch_size;
};

// GCC alone can compile a whole file for another instruction set from within it.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LADDER_X86 1
extern const Kernels avx2_kernels, avx512_kernels;
#endif
extern const Kernels baseline_kernels;

}  // namespace ladder_kernels::cpu
