// The kernels for AVX2 with FMA, as x86-64-v3 CPUs have it.
#include "../plan.h"

#if defined(LADDER_X86)
#pragma GCC target("avx2,fma")
#define LADDER_ISA avx2
#include "backward.h"
#include "forward.h"
#include "noise.h"

namespace ladder_kernels::cpu {
const Kernels avx2_kernels{avx2::forward, avx2::backward, avx2::scratch_size, avx2::twist, avx2::normal<float>};
}
#endif
