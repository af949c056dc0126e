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

// Sums of `count` rows (1 or 4) into `row_sums`; adds the same values to `column_sums`. Four at a time, because every
// value is converted once for both, and the column sums are read and written once for all.
template <int count, class T>
static void add_rows(const T* rows, std::int64_t stride, std::int64_t columns, double* row_sums, double* column_sums) {
  static_assert(count == 1 || count == 4);
  const T *const row0 = rows, *const row1 = rows + stride, *const row2 = rows + 2 * stride, *const row3 = rows + 3 * stride;
  double sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
  for (std::int64_t i = 0; i < columns; ++i) {
    const double value0 = row0[i], value1 = count > 1 ? row1[i] : T(0), value2 = count > 1 ? row2[i] : T(0),
                 value3 = count > 1 ? row3[i] : T(0);
    sum0 += value0;
    sum1 += value1;
    sum2 += value2;
    sum3 += value3;
    column_sums[i] += (value0 + value1) + (value2 + value3);
  }
  row_sums[0] = sum0;
  if constexpr (count > 1) {
    row_sums[1] = sum1;
    row_sums[2] = sum2;
    row_sums[3] = sum3;
  }
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
