// z, the elementwise KL, and partial sums of everything else, in one pass.
#include "inputs.cuh"
#include "launch.cuh"
#include "partials.cuh"
#include "reductions.cuh"

namespace ladder_kernels::cuda {
namespace {

template <class T>
struct Element {
  T z, kl, log_q, logvar;
};

template <class Path, class Access>
LADDER_FN Element<typename Access::T> forward_element(const Inputs<Access, Path>& in, typename Access::T q_mean,
                                                      typename Access::T q_raw, typename Access::T p_mean,
                                                      typename Access::T p_raw, typename Access::T source) {
  using T = typename Access::T;
  return Path::with(in.step, [&](auto options) -> Element<T> {
    using Options = decltype(options);
    if constexpr (Options::kl == KL::none) {
      return {};
    } else {
      const Gaussian<T> q = gaussian<Options::stable>(q_mean, q_raw, in.q_map);
      const Gaussian<T> p = gaussian<Options::stable>(p_mean, p_raw, in.p_map);
      const Latent<T> latent = draw_latent<Options::draw>(q, source, in.temperature);
      return {latent.z, divergence<Options::kl, Options::stable>(q, p, latent), log_density(latent.eps, q), q.logvar};
    }
  });
}

// What a thread has added up.
template <class T, int width>
struct Totals {
  T column_kl[width] = {}, restricted = 0, log_q = 0, logvar_max = -std::numeric_limits<T>::infinity();
};

// The thread's sums over rows become the block's: of every column, and of all.
template <class T, int width>
__device__ __forceinline__ void store_partials(const Forward& call, const Place& place, const Totals<T, width>& totals) {
  const Grid& grid = call.step.grid;
  const Partials<T> partials(call);
  __shared__ T columns[max_threads * width];
  T kl = 0, restricted = totals.restricted;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    columns[threadIdx.x * width + i] = totals.column_kl[i];
    kl += totals.column_kl[i];
    const bool in_window = call.has_window && !grid.channels_inner && inside(call.window, place.column + i);
    restricted += in_window ? totals.column_kl[i] : T(0);
  }
  __syncthreads();
  const int tile_columns = call.tiles.lanes * width;
  const std::int64_t first = place.column_block * tile_columns;
  T* const column_sums = partials.column_sums + (place.row_block * grid.batch + place.sample) * grid.columns;
  for (int column = threadIdx.x; column < tile_columns && first + column < grid.columns; column += blockDim.x) {
    T sum = 0;
    for (int row = 0; row < call.tiles.rows; ++row) sum += columns[row * tile_columns + column];
    column_sums[first + column] = sum;
  }

  kl = reduce_block(kl, Add{});
  restricted = reduce_block(restricted, Add{});
  const T log_q = reduce_block(totals.log_q, Add{});
  const T logvar_max = reduce_block(totals.logvar_max, NanMax{});
  if (threadIdx.x > 0) return;
  const std::int64_t block =
      place.sample * blocks_per_sample(call.tiles) + place.row_block * call.tiles.column_blocks + place.column_block;
  partials.kl[block] = kl;
  partials.restricted[block] = restricted;
  partials.log_q[block] = log_q;
  partials.logvar_max[block] = logvar_max;
}

template <class Access, class Path>
__global__ void __launch_bounds__(max_threads) forward_kernel(const __grid_constant__ Forward call) {
  using T = typename Access::T;
  constexpr int width = Access::width;
  const Grid& grid = call.step.grid;
  const Place place = place_of(call.tiles, blockIdx.x, threadIdx.x);
  const Inputs<Access, Path> in(call.step, place.sample, place.column);
  const typename Access::Columns z(grid, call.z, place.sample, place.column);
  const typename Access::FloatColumns kl(grid, call.kl, place.sample, place.column);
  T* const row_sums = Partials<T>(call).row_sums + (place.column_block * grid.batch + place.sample) * grid.rows;
  const bool has_columns = place.column < grid.columns && static_cast<int>(threadIdx.x) < call.tiles.lanes * call.tiles.rows;
  Totals<T, width> totals;

  for (int step = 0; step < call.tiles.steps; ++step) {
    const int row = place.row + step * call.tiles.rows;
    T row_kl = 0;
    if (has_columns && row < grid.rows) {
      const auto q_mean = in.q_mean.load(row), q_logvar = in.q_logvar.load(row);
      const auto p_mean = in.p_mean.load(row), p_logvar = in.p_logvar.load(row);
      const auto source = in.load_source(row);
      Values<T, width> row_z, element_kl;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const Element<T> element = forward_element<Path, Access>(in, q_mean.at[i], q_logvar.at[i], p_mean.at[i],
                                                                 p_logvar.at[i], source.at[i]);
        row_z.at[i] = element.z;
        element_kl.at[i] = element.kl;
        row_kl += element.kl;
        totals.column_kl[i] += element.kl;
        totals.log_q += element.log_q;
        totals.logvar_max = nan_max(totals.logvar_max, element.logvar);
      }
      z.store(row, row_z);
      kl.store(row, element_kl);
      if (call.has_window && grid.channels_inner && inside(call.window, row)) totals.restricted += row_kl;
    }
    row_kl = reduce_lanes(row_kl, call.tiles.lanes, Add{});
    if (place.lane == 0 && has_columns && row < grid.rows) row_sums[row] = row_kl;
  }
  store_partials(call, place, totals);
}

}  // namespace

void launch_forward(const Forward& call, bool in_double, cudaStream_t stream) {
  const std::int64_t blocks = call.step.grid.batch * blocks_per_sample(call.tiles);
  if (call.tiles.width == 1) {
    return with_singles(in_double, [&](auto access) {
      launch(forward_kernel<decltype(access), AnyPath>, blocks, threads_of(call.tiles), stream, call);
    });
  }
  with_vectors(call.step.q.dtype, [&](auto access) {
    with_hot_path(call.step, [&](auto path) {
      launch(forward_kernel<decltype(access), decltype(path)>, blocks, threads_of(call.tiles), stream, call);
    });
  });
}

}  // namespace ladder_kernels::cuda
