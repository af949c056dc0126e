// The second kernel of the forward pass: adds the partial sums in a fixed order and finishes them.
#include "inputs.cuh"
#include "launch.cuh"
#include "partials.cuh"
#include "reductions.cuh"

namespace ladder_kernels::cuda {
namespace {

constexpr double half_log_two_pi = 0.9189385332046727;

// out[i] = sum over k of partials[k, i].
template <class T>
__device__ __forceinline__ void add_up(const T* partials, void* out, std::int64_t block, std::int64_t size,
                                       std::int64_t count) {
  const std::int64_t i = block * max_threads + threadIdx.x;
  if (i >= size) return;
  T sum = 0;
#pragma unroll 8
  for (std::int64_t k = 0; k < count; ++k) sum += partials[k * size + i];
  static_cast<T*>(out)[i] = sum;
}

// Of `count` values; every thread of the block takes part and thread 0 gets it.
template <class T, class Combine>
__device__ __forceinline__ T total(const T* values, std::int64_t count, T neutral, Combine combine) {
  T result = neutral;
  for (std::int64_t i = threadIdx.x; i < count; i += max_threads) result = combine(result, values[i]);
  return reduce_block(result, combine);
}

template <class T>
__device__ __forceinline__ void finish_sample(const Forward& call, const Sums& out, std::int64_t sample) {
  const Partials<T> partials(call);
  const std::int64_t blocks = blocks_per_sample(call.tiles), first = sample * blocks;
  const auto sum_into = [&](void* to, const T* from) {
    const T sum = total(from + first, blocks, T(0), Add{});
    if (threadIdx.x == 0) static_cast<T*>(to)[sample] = sum;
  };
  if (out.samplewise != nullptr) sum_into(out.samplewise, partials.kl);
  if (out.restricted != nullptr) sum_into(out.restricted, partials.restricted);
  const T log_q = total(partials.log_q + first, blocks, T(0), Add{});
  if (threadIdx.x > 0) return;
  const T elements = static_cast<T>(call.step.grid.rows) * static_cast<T>(call.step.grid.columns);
  static_cast<T*>(out.logprob_q)[sample] = log_q - elements * static_cast<T>(half_log_two_pi);
}

// The map from raw to log-variance is monotone, so it is applied to the largest raw one.
template <class T>
__device__ __forceinline__ void finish_maximum(const Forward& call, const Sums& out) {
  const std::int64_t count = call.step.grid.batch * blocks_per_sample(call.tiles);
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  const T largest = total(Partials<T>(call).logvar_max, count, lowest, NanMax{});
  if (threadIdx.x > 0) return;
  const VarianceMap<T> map = parameters(call.step, T()).q_map;
  const Gaussian<T> q = call.step.stable ? gaussian_of<true>(T(0), largest, map) : gaussian_of<false>(T(0), largest, map);
  *static_cast<T*>(out.qvar_max) = q.log_var;
}

__host__ __device__ constexpr std::int64_t blocks_of(std::int64_t size) {
  return (size + max_threads - 1) / max_threads;
}

// How many sums of the KL over rows and over columns there are.
struct KLSums {
  std::int64_t columns, rows;
};

__host__ __device__ inline KLSums kl_sums(const Step& step) {
  if (step.kl == KL::none) return {0, 0};
  return {step.grid.batch * step.grid.columns, step.grid.batch * step.grid.rows};
}

// Grid: blocks of column sums, blocks of row sums, samples, and one block for the maximum.
template <class T>
__global__ void __launch_bounds__(max_threads)
    sums_kernel(const __grid_constant__ Forward call, const __grid_constant__ Sums out) {
  const Grid& grid = call.step.grid;
  const Partials<T> partials(call);
  const auto [columns, rows] = kl_sums(call.step);
  std::int64_t block = blockIdx.x;
  if (block < blocks_of(columns)) return add_up(partials.column_sums, out.column_sums, block, columns, call.tiles.row_blocks);
  block -= blocks_of(columns);
  if (block < blocks_of(rows)) return add_up(partials.row_sums, out.row_sums, block, rows, call.tiles.column_blocks);
  block -= blocks_of(rows);
  if (block < grid.batch) return finish_sample<T>(call, out, block);
  finish_maximum<T>(call, out);
}

}  // namespace

void launch_sums(const Forward& call, const Sums& out, bool in_double, cudaStream_t stream) {
  const auto [columns, rows] = kl_sums(call.step);
  const std::int64_t blocks = blocks_of(columns) + blocks_of(rows) + call.step.grid.batch + 1;
  with_singles(in_double, [&](auto access) {
    launch(sums_kernel<typename decltype(access)::T>, blocks, max_threads, stream, call, out);
  });
}

}  // namespace ladder_kernels::cuda
