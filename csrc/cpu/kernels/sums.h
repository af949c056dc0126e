// Reductions of one tile. They accumulate in double, so that the order of a sum is below the rounding of its result.
#pragma once

#include <cstdint>

namespace ladder_kernels::cpu::LADDER_ISA {

template <class T>
static double sum(const T* values, std::int64_t count) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t i = 0; i < count; ++i) total += values[i];
  return total;
}

template <class T>
static void add_to(double* totals, const T* values, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) totals[i] += values[i];
}

// The largest value; NaN if there is one.
template <class T>
static T maximum(const T* values, std::int64_t count) {
  T largest = -std::numeric_limits<T>::infinity();
  int nans = 0;
#pragma omp simd reduction(max : largest) reduction(+ : nans)
  for (std::int64_t i = 0; i < count; ++i) {
    largest = values[i] > largest ? values[i] : largest;
    nans += values[i] != values[i] ? 1 : 0;
  }
  return nans > 0 ? std::numeric_limits<T>::quiet_NaN() : largest;
}

}  // namespace ladder_kernels::cpu::LADDER_ISA
