// z, the elementwise KL, and partial sums of everything else, in one pass; then the sums.
#include "launch.cuh"
#include "reductions.cuh"

namespace ladder_kernels::cuda {
namespace {

template <class T>
struct Element {
  T z, kl, log_q;
};

template <class Path, class T>
__device__ Element<T> forward_element(const Step& step, T q_mean, T q_raw, T p_mean, T p_raw, T source) {
  return Path::with(step, [&](auto options) -> Element<T> {
    using Options = decltype(options);
    const Parameters<T>& use = parameters(step, T());
    const auto q = gaussian_of<Options::variance>(q_mean, q_raw, use.q_map);
    const Latent<T> latent = draw_latent<Options::draw>(q, source, use.temperature);
    T kl = 0;
    if constexpr (Options::kl != KL::none) {
      const auto p = gaussian_of<Options::variance>(p_mean, p_raw, use.p_map);
      kl = divergence<Options::kl>(q, p, latent);
    }
    return {latent.z, kl, log_density(latent.eps, q)};
  });
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
  for (int step = 0; step < call.tiles.steps; ++step) {
    const int row = place.row + step * call.tiles.rows;
    if (row < call.step.grid.rows && inside(call.window, row)) sum += row_sums[row];
  }
  return sum;
}

__device__ __forceinline__ std::int64_t block_index(const Forward& call, const Place& place) {
  return place.sample * blocks_per_sample(call.tiles) + place.row_block * call.tiles.column_blocks + place.column_block;
}

// The thread's sums of the KL over rows become the block's: of every column, and of all.
template <class Access, class T, int width>
__device__ __forceinline__ void store_kl(const Forward& call, const Place& place, const Totals<T, width>& totals) {
  const Grid& grid = call.step.grid;
  const Partials<T> partials(call);
  __shared__ T columns[max_threads * width];
  const int tile_columns = call.tiles.lanes * width, tile_row = threadIdx.x / call.tiles.lanes;
  const std::int64_t first = place.column_block * tile_columns;
  T kl = 0, restricted = totals.restricted;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    const int column = place.template column_of<Access::vector>(i);
    if (place.has_columns) columns[tile_row * tile_columns + column - first] = totals.column_kl[i];
    kl += totals.column_kl[i];
    const bool in_window = call.has_window && !grid.channels_inner && inside(call.window, column);
    restricted += in_window ? totals.column_kl[i] : T(0);
  }
  __syncthreads();
  T* const column_sums = partials.column_sums + (place.row_block * grid.batch + place.sample) * grid.columns;
  for (int column = threadIdx.x; column < tile_columns && first + column < grid.columns; column += blockDim.x) {
    T sum = 0;
    for (int row = 0; row < call.tiles.rows; ++row) sum += columns[row * tile_columns + column];
    column_sums[first + column] = sum;
  }

  kl = reduce_block(kl, Add{});
  restricted = reduce_block(restricted, Add{});
  if (threadIdx.x > 0) return;
  partials.kl[block_index(call, place)] = kl;
  partials.restricted[block_index(call, place)] = restricted;
}

template <class T, int width>
__device__ __forceinline__ void store_log_q(const Forward& call, const Place& place, const Totals<T, width>& totals) {
  const Partials<T> partials(call);
  const T log_q = reduce_block(totals.log_q, Add{});
  const T largest_raw = reduce_block(totals.largest_raw, NanMax{});
  if (threadIdx.x > 0) return;
  partials.log_q[block_index(call, place)] = log_q;
  partials.largest_raw[block_index(call, place)] = largest_raw;
}

// The second bound leaves a thread 96 registers, or for doubles 128: with fewer, some variants spill.
template <class Access, class Path>
__global__ void __launch_bounds__(max_threads, sizeof(typename Access::T) == sizeof(float) ? 5 : 4)
    forward_kernel(const __grid_constant__ Forward call) {
  using T = typename Access::T;
  constexpr int width = Access::width;
  const Grid& grid = call.step.grid;
  const Place place = place_of<width, Access::vector>(grid, call.tiles, blockIdx.x, threadIdx.x);
  const Inputs<Access, Path> in(call.step, place);
  const typename Access::Columns z(grid, call.z, place);
  const typename Access::FloatColumns kl(grid, call.kl, place);
  T* const row_sums =
      pinned(Partials<T>(call).row_sums + (place.column_block * grid.batch + place.sample) * grid.rows);
  Totals<T, width> totals;

  for (int step = 0; step < call.tiles.steps; ++step) {
    const int row = place.row + step * call.tiles.rows;
    T row_kl = 0;
    if (place.has_columns && row < grid.rows) {
      const auto q = in.load_q(row), p = in.load_p(row);
      const auto source = in.load_source(row);
      Values<T, width> row_z, element_kl;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const auto element = forward_element<Path>(call.step, q.mean.at[i], q.raw.at[i], p.mean.at[i],
                                                   p.raw.at[i], source.at[i]);
        row_z.at[i] = element.z;
        element_kl.at[i] = element.kl;
        row_kl += element.kl;
        totals.column_kl[i] += element.kl;
        totals.log_q += element.log_q;
        totals.largest_raw = nan_max(totals.largest_raw, q.raw.at[i]);
      }
      if (call.z.data != nullptr) z.store(row, row_z);
      if (call.kl.data != nullptr) kl.store(row, element_kl);
    }
    if (!Path::has_kl(call.step)) continue;
    row_kl = reduce_lanes(row_kl, call.tiles.lanes, Add{});
    if (stores_row_sums(place) && row < grid.rows) row_sums[row] = row_kl;
  }
  store_log_q(call, place, totals);
  if (!Path::has_kl(call.step)) return;
  if (call.has_window && grid.channels_inner) totals.restricted = window_of_rows(call, place, row_sums);
  store_kl<Access>(call, place, totals);
}

// ---- The second kernel: adds the partial sums in a fixed order and finishes them.

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

template <class T>
__device__ __forceinline__ void finish_maximum(const Forward& call, const Sums& out) {
  const std::int64_t count = call.step.grid.batch * blocks_per_sample(call.tiles);
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  const T largest = total(Partials<T>(call).largest_raw, count, lowest, NanMax{});
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
  if (block < blocks_of(columns)) {
    return add_up(partials.column_sums, out.column_sums, block, columns, call.tiles.row_blocks);
  }
  block -= blocks_of(columns);
  if (block < blocks_of(rows)) return add_up(partials.row_sums, out.row_sums, block, rows, call.tiles.column_blocks);
  block -= blocks_of(rows);
  if (block < grid.batch) return finish_sample<T>(call, out, block);
  finish_maximum<T>(call, out);
}

}  // namespace

void launch_forward(const Forward& call, cudaStream_t stream) {
  const std::int64_t blocks = call.step.grid.batch * blocks_per_sample(call.tiles);
  if (call.tiles.width == 1) {
    return with_singles(call.step, [&](auto access) {
      launch(forward_kernel<decltype(access), AnyPath>, blocks, threads_of(call.tiles), stream, call);
    });
  }
  with_vectors(call.step.q.dtype, [&](auto access) {
    const auto put = [&](auto path) {
      launch(forward_kernel<decltype(access), decltype(path)>, blocks, threads_of(call.tiles), stream, call);
    };
    call.step.kl == KL::none ? with_hot_path_without_kl(call.step, put) : with_hot_path(call.step, put);
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
