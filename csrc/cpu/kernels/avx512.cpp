// The kernels for AVX-512, as x86-64-v4 CPUs have it.
#include "../plan.h"

#if defined(LADDER_X86)
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,prefer-vector-width=512")
#define LADDER_ISA avx512
#include "backward.h"
#include "forward.h"
#include "noise.h"

namespace ladder_kernels::cpu {
const Kernels avx512_kernels{avx512::forward, avx512::backward, avx512::scratch_size, avx512::twist, avx512::normal<float>};
}
#endif
