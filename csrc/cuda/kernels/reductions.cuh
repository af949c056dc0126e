// Sums and maxima over the threads of a row and of a block, in a fixed order, and what blocks leave to be added up.
#pragma once

#include "../plan.h"

namespace ladder_kernels::cuda {

// NaN if either is.
__device__ __forceinline__ float nan_max(float a, float b) { return math::maximum(a, b); }
__device__ __forceinline__ double nan_max(double a, double b) { return a > b || a != a ? a : b; }

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const { return a + b; }
};

struct NanMax {
  template <class T>
  __device__ T operator()(T a, T b) const { return nan_max(a, b); }
};

// Over groups of `lanes` neighbouring threads, a power of two; every thread of the warp takes part and gets it.
template <class T, class Combine>
__device__ __forceinline__ T reduce_lanes(T value, int lanes, Combine combine) {
#pragma unroll
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(0xffffffff, value, distance);
    if (distance < lanes) value = combine(value, other);
  }
  return value;
}

// Over the block, whose threads are whole warps; every thread takes part and thread 0 gets it.
template <class T, class Combine>
__device__ __forceinline__ T reduce_block(T value, Combine combine) {
  __shared__ T warps[max_threads / warp_size];
  value = reduce_lanes(value, warp_size, combine);
  // What an earlier reduction left here has been read.
  __syncthreads();
  if (threadIdx.x % warp_size == 0) warps[threadIdx.x / warp_size] = value;
  __syncthreads();
  value = warps[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / warp_size; ++warp) value = combine(value, warps[warp]);
  return value;
}

template <class T>
struct Partials {
  T *column_sums, *row_sums, *kl, *restricted, *log_q, *largest_raw;

  __device__ explicit Partials(const Forward& call) {
    const Grid& grid = call.step.grid;
    const std::int64_t scalars = grid.batch * blocks_per_sample(call.tiles);
    column_sums = static_cast<T*>(call.partials);
    row_sums = column_sums + call.tiles.row_blocks * grid.batch * grid.columns;
    kl = row_sums + call.tiles.column_blocks * grid.batch * grid.rows;
    restricted = kl + scalars;
    log_q = restricted + scalars;
    largest_raw = log_q + scalars;
  }
};

}  // namespace ladder_kernels::cuda
