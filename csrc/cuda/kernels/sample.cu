// The sampling kernel of prediction: two reads, one write.
#include "launch.cuh"

namespace ladder_kernels::cuda {
namespace {

template <class Path, class T>
__device__ T sample_element(const Step& step, T mean, T raw, T source) {
  return Path::with(step, [&](auto options) -> T {
    using Options = decltype(options);
    const Parameters<T>& use = parameters(step, T());
    const auto gaussian = gaussian_of<Options::variance>(mean, raw, use.q_map);
    return draw_latent<Options::draw>(gaussian, source, use.temperature).z;
  });
}

template <class Access, class Path>
__global__ void __launch_bounds__(max_threads) sample_kernel(const __grid_constant__ Sample call) {
  constexpr int width = Access::width;
  const Grid& grid = call.step.grid;
  const Place place = place_of<width, Access::vector>(grid, call.tiles, blockIdx.x, threadIdx.x);
  if (!place.has_columns) return;
  const Inputs<Access, Path> in(call.step, place);
  const typename Access::Columns out(grid, call.z, place);

  for (int step = 0; step < call.tiles.steps; ++step) {
    const int row = place.row + step * call.tiles.rows;
    if (row >= grid.rows) return;
    const auto q = in.load_q(row);
    const auto source = in.load_source(row);
    Values<typename Access::T, width> z;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      z.at[i] = sample_element<Path>(call.step, q.mean.at[i], q.raw.at[i], source.at[i]);
    }
    out.store(row, z);
  }
}

}  // namespace

void launch_sample(const Sample& call, cudaStream_t stream) {
  const std::int64_t blocks = call.step.grid.batch * blocks_per_sample(call.tiles);
  if (call.tiles.width == 1) {
    return with_singles(call.step, [&](auto access) {
      launch(sample_kernel<decltype(access), AnyPath>, blocks, threads_of(call.tiles), stream, call);
    });
  }
  with_vectors(call.step.q.dtype, [&](auto access) {
    with_hot_path_without_kl(call.step, [&](auto path) {
      launch(sample_kernel<decltype(access), decltype(path)>, blocks, threads_of(call.tiles), stream, call);
    });
  });
}

}  // namespace ladder_kernels::cuda
