// Sums and maxima over the threads of a row and of a block, in a fixed order.
#pragma once

#include "../plan.h"

namespace ladder_kernels::cuda {

// NaN if either is.
__device__ __forceinline__ float nan_max(float a, float b) { return math::maximum(a, b); }
__device__ __forceinline__ double nan_max(double a, double b) { return a > b || a != a ? a : b; }

template <class T>
__device__ __forceinline__ T from_lane(T value, int distance) {
  return __shfl_xor_sync(0xffffffff, value, distance);
}

// Over groups of `lanes` neighbouring threads, a power of two of at most `most`; every thread of the warp takes part and
// gets it.
template <int most, class T>
__device__ __forceinline__ T sum_lanes(T value, int lanes) {
#pragma unroll
  for (int distance = most / 2; distance > 0; distance /= 2) {
    const T other = from_lane(value, distance);
    if (distance < lanes) value += other;
  }
  return value;
}

template <class T>
__device__ __forceinline__ BlockSums<T> no_sums() {
  return {0, 0, 0, -std::numeric_limits<T>::infinity()};
}

template <class T>
__device__ __forceinline__ BlockSums<T> add(const BlockSums<T>& a, const BlockSums<T>& b) {
  return {a.kl + b.kl, a.restricted + b.restricted, a.log_q + b.log_q, nan_max(a.largest_raw, b.largest_raw)};
}

// Over the block, whose threads are whole warps; every thread takes part, once, and thread 0 gets it. What a thread has
// written to shared memory before, all may read afterwards. Without a window, nothing is restricted.
template <class T>
__device__ __forceinline__ BlockSums<T> add_block(BlockSums<T> sums, bool has_window) {
  __shared__ BlockSums<T> warps[max_threads / warp_size];
  sums.kl = sum_lanes<warp_size>(sums.kl, warp_size);
  if (has_window) sums.restricted = sum_lanes<warp_size>(sums.restricted, warp_size);
  sums.log_q = sum_lanes<warp_size>(sums.log_q, warp_size);
#pragma unroll
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
    sums.largest_raw = nan_max(sums.largest_raw, from_lane(sums.largest_raw, distance));
  }
  if (threadIdx.x % warp_size == 0) warps[threadIdx.x / warp_size] = sums;
  __syncthreads();
  if (threadIdx.x > 0) return sums;
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / warp_size; ++warp) sums = add(sums, warps[warp]);
  return sums;
}

}  // namespace ladder_kernels::cuda
