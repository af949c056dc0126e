// z, the elementwise KL, and partial sums of everything else, in one pass; then the sums.
#include "launch.cuh"
#include "reductions.cuh"

namespace ladder_kernels::cuda {
namespace {

template <class T>
struct Element {
  T z, kl, log_q;
};

template <class Path, class Options, class T>
__device__ __forceinline__ Element<T> forward_element(const Parameters<T>& use, T q_mean, T q_raw, T p_mean, T p_raw,
                                                      T source) {
  const auto q = gaussian_of<Options::variance>(q_mean, q_raw, use.q_map);
  const Latent<T> latent = draw_latent<Options::draw>(q, source, use.temperature);
  T kl = 0;
  if constexpr (Options::kl != KL::none) {
    const auto p = prior_of<Path, Options::variance>(p_mean, p_raw, use.p_map);
    kl = divergence<Options::kl>(q, p, latent);
  }
  return {latent.z, kl, log_density(latent.eps, q)};
}

__device__ __forceinline__ bool stores_row_sums(const Place& place) { return place.lane == 0 && place.has_columns; }

// What a thread has added up.
template <class T, int width>
struct Totals {
  T column_kl[width] = {}, restricted = 0, log_q = 0, largest_raw = -std::numeric_limits<T>::infinity();
};

// Where rows are positions: of those row sums that the thread itself has stored, the sum inside the window.
template <class T>
__device__ __forceinline__ T window_of_rows(const Forward& call, const Place& place, const T* row_sums) {
  T sum = 0;
  if (!stores_row_sums(place)) return sum;
  for (int turn = 0; turn < call.tiles.turns; ++turn) {
    const int row = place.row + turn * call.tiles.rows;
    if (row < call.step.grid.rows && inside(call.window, row)) sum += row_sums[row];
  }
  return sum;
}

// The threads' sums of the KL over rows become the warps'.
template <class Access, class T, int width>
__device__ __forceinline__ void add_rows_of_warp(const Tiles& tiles, const Place& place, int first, T (&kl)[width],
                                                 T* columns) {
  const int lanes = tiles.lanes.value;
  for (int distance = warp_size / 2; distance >= lanes; distance /= 2) {
#pragma unroll
    for (int i = 0; i < width; ++i) kl[i] += from_lane(kl[i], distance);
  }
  if (!place.has_columns || threadIdx.x % warp_size >= lanes) return;
#pragma unroll
  for (int i = 0; i < width; ++i) columns[place.template column_of<Access::vector>(i) - first] = kl[i];
}

// The thread's sums become the block's.
template <class Access, class Path, class T, int width>
__device__ __forceinline__ void store_sums(const Forward& call, const Place& place, Totals<T, width>& totals) {
  const Grid& grid = call.step.grid;
  __shared__ T columns[max_threads / warp_size][max_columns];
  const int first = place.column_block * call.tiles.lanes.value * width;
  T kl = 0;
  if (Path::has_kl(call.step)) {
#pragma unroll
    for (int i = 0; i < width; ++i) kl += totals.column_kl[i];
    if (call.has_window && !grid.channels_inner) {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const bool counts = inside(call.window, place.template column_of<Access::vector>(i));
        totals.restricted += counts ? totals.column_kl[i] : T(0);
      }
    }
    add_rows_of_warp<Access>(call.tiles, place, first, totals.column_kl, columns[threadIdx.x / warp_size]);
  }
  const BlockSums<T> own{kl, totals.restricted, totals.log_q, totals.largest_raw}, sums = add_block(own, call.has_window);
  if (threadIdx.x == 0) static_cast<BlockSums<T>*>(call.block_sums)[blockIdx.x] = sums;
  if (!Path::has_kl(call.step)) return;
  const std::int64_t block_of_rows = std::int64_t{1} * place.row_block * grid.batch + place.sample;
  T* const column_sums = static_cast<T*>(call.column_sums) + block_of_rows * grid.columns + first;
  const int tile_columns = min(call.tiles.lanes.value * width, grid.columns - first);
  for (int column = threadIdx.x; column < tile_columns; column += blockDim.x) {
    T sum = 0;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / warp_size; ++warp) sum += columns[warp][column];
    column_sums[column] = sum;
  }
}

// The second bound leaves a thread 96 registers, where words are read and written: with fewer, some variants spill.
template <class Access, class Path>
__global__ void __launch_bounds__(max_threads, Access::blocks) forward_kernel(const __grid_constant__ Forward call) {
  using T = typename Access::T;
  constexpr int width = Access::width;
  const Grid& grid = call.step.grid;
  const Place place = place_of<Access>(grid, call.tiles, blockIdx.x, threadIdx.x);
  const Inputs<Access, Path> in(call.step, place);
  const typename Access::Columns z(grid, call.z, place);
  const typename Access::FloatColumns kl(grid, call.kl, place);
  const std::int64_t block_of_columns = std::int64_t{1} * place.column_block * grid.batch + place.sample;
  T* const row_sums = pinned(static_cast<T*>(call.row_sums) + block_of_columns * grid.rows);
  Totals<T, width> totals;

  for (int turn = 0; turn < call.tiles.turns; ++turn) {
    const int row = place.row + turn * call.tiles.rows;
    T row_kl = 0;
    if (place.has_columns && row < grid.rows) {
      const auto q = in.load_q(row), p = in.load_p(row);
      const auto source = in.load_source(row);
      Values<T, width> row_z, element_kl;
      Path::with(call.step, [&](auto options) {
#pragma unroll
        for (int i = 0; i < width; ++i) {
          const auto element = forward_element<Path, decltype(options)>(
              in.parameters, q.mean.at[i], q.raw.at[i], p.mean.at[i], p.raw.at[i], source.at[i]);
          row_z.at[i] = element.z;
          element_kl.at[i] = element.kl;
          if (Access::ragged && place.template column_of<Access::vector>(i) >= grid.columns) continue;
          row_kl += element.kl;
          totals.column_kl[i] += element.kl;
          totals.log_q += element.log_q;
          totals.largest_raw = nan_max(totals.largest_raw, q.raw.at[i]);
        }
      });
      if (call.z.data != nullptr) z.store(row, row_z);
      if (call.kl.data != nullptr) kl.store(row, element_kl);
    }
    if (!Path::has_kl(call.step)) continue;
    row_kl = sum_lanes<max_columns / width>(row_kl, call.tiles.lanes.value);
    if (stores_row_sums(place) && row < grid.rows) row_sums[row] = row_kl;
  }
  const bool window_of_positions = Path::has_kl(call.step) && call.has_window && grid.channels_inner;
  if (window_of_positions) totals.restricted = window_of_rows(call, place, row_sums);
  store_sums<Access, Path>(call, place, totals);
}

// ---- The second kernel: adds the partial sums in a fixed order and finishes them.

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

// Of `count` blocks from `first` on; thread 0 gets it.
template <class T>
__device__ __forceinline__ BlockSums<T> total(const Forward& call, std::int64_t first, std::int64_t count) {
  const auto* const blocks = static_cast<const BlockSums<T>*>(call.block_sums) + first;
  BlockSums<T> sums = no_sums<T>();
  for (std::int64_t i = threadIdx.x; i < count; i += max_threads) sums = add(sums, blocks[i]);
  return add_block(sums, call.has_window);
}

template <class T>
__device__ __forceinline__ void finish_sample(const Forward& call, const Sums& out, std::int64_t sample) {
  const std::int64_t blocks = blocks_per_sample(call.tiles);
  const BlockSums<T> sums = total<T>(call, sample * blocks, blocks);
  if (threadIdx.x > 0) return;
  const T elements = static_cast<T>(call.step.grid.rows) * static_cast<T>(call.step.grid.columns);
  if (out.samplewise != nullptr) static_cast<T*>(out.samplewise)[sample] = sums.kl;
  if (out.restricted != nullptr) static_cast<T*>(out.restricted)[sample] = sums.restricted;
  static_cast<T*>(out.logprob_q)[sample] = sums.log_q - elements * static_cast<T>(half_log_two_pi);
}

template <class T>
__device__ __forceinline__ void finish_maximum(const Forward& call, const Sums& out) {
  const std::int64_t count = std::int64_t{1} * call.step.grid.batch * blocks_per_sample(call.tiles);
  const T largest = total<T>(call, 0, count).largest_raw;
  if (threadIdx.x > 0) return;
  *static_cast<T*>(out.logvar_max) = log_variance(call.step.variance, largest, parameters(call.step, T()).q_map);
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
  const std::int64_t batch = step.grid.batch;
  return {batch * step.grid.columns, batch * step.grid.rows};
}

// Grid: blocks of column sums, blocks of row sums, samples, and one block for the maximum.
template <class T>
__global__ void __launch_bounds__(max_threads)
    sums_kernel(const __grid_constant__ Forward call, const __grid_constant__ Sums out) {
  const Grid& grid = call.step.grid;
  const auto [columns, rows] = kl_sums(call.step);
  std::int64_t block = blockIdx.x;
  if (block < blocks_of(columns)) {
    const T* const of_row_blocks = static_cast<const T*>(call.column_sums);
    return add_up(of_row_blocks, out.column_sums, block, columns, call.tiles.row_blocks.value);
  }
  block -= blocks_of(columns);
  if (block < blocks_of(rows)) {
    const T* const of_column_blocks = static_cast<const T*>(call.row_sums);
    return add_up(of_column_blocks, out.row_sums, block, rows, call.tiles.column_blocks.value);
  }
  block -= blocks_of(rows);
  if (block < grid.batch) return finish_sample<T>(call, out, block);
  finish_maximum<T>(call, out);
}

}  // namespace

void launch_forward(const Forward& call, cudaStream_t stream) {
  const int blocks = call.step.grid.batch * blocks_per_sample(call.tiles);
  if (call.tiles.width == single_width) {
    return with_singles(call.step, [&](auto access) {
      launch(forward_kernel<decltype(access), AnyPath>, blocks, threads_of(call.tiles), stream, call);
    });
  }
  with_vectors(call.step.q.dtype, [&](auto access) {
    with_hot_path(call.step, [&](auto path) {
      launch(forward_kernel<decltype(access), decltype(path)>, blocks, threads_of(call.tiles), stream, call);
    });
  });
}

void launch_sums(const Forward& call, const Sums& out, cudaStream_t stream) {
  const auto [columns, rows] = kl_sums(call.step);
  const std::int64_t blocks = blocks_of(columns) + blocks_of(rows) + call.step.grid.batch + 1;
  with_singles(call.step, [&](auto access) {
    launch(sums_kernel<typename decltype(access)::T>, blocks, max_threads, stream, call, out);
  });
}

}  // namespace ladder_kernels::cuda
