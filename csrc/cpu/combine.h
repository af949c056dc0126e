// From the partial sums of units to the outputs.
#pragma once

#include <array>
#include <optional>

#include "plan.h"

namespace ladder_kernels::cpu {

// Rows [w0, w1) and columns [w2, w3) of the last two dims.
using Window = std::array<std::int64_t, 4>;

// Where the sums go, each contiguous; null where there is none.
template <class T>
struct Sums {
  T *samplewise, *restricted, *channelwise, *spatial, *logprob_q, *qvar_max;
};

// In fixed order and in double. There is at least one unit; its partial sums are used up.
template <class T>
void combine(const Forward& call, const std::optional<Window>& window, Sums<T> out);

}  // namespace ladder_kernels::cpu
