// Work shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../ladder_kernels.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace ladder_kernels::cpu {

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// f(begin, end) for equal shares of [0, count), none of fewer than `least` but the last. The threads are OpenMP's, and
// so torch's own, which has loaded the same library; without OpenMP there is one.
template <class F>
void share(std::int64_t count, std::int64_t least, LadderQueue threads, const F& f) {
#if defined(_OPENMP)
  if (threads > 1 && count > least) {
    // As many as torch has, though some find nothing to do: another number would end threads and start others.
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
      const std::int64_t shares = std::min<std::int64_t>(omp_get_num_threads(), divide_up(count, least));
      const std::int64_t size = divide_up(count, shares), begin = omp_get_thread_num() * size;
      if (begin < count) f(begin, std::min(begin + size, count));
    }
    return;
  }
#endif
  f(0, count);
}

}  // namespace ladder_kernels::cpu
