// The sampling kernel of prediction: two reads, one write.
#include "launch.cuh"

namespace ladder_kernels::cuda {
namespace {

template <class Access, class Path>
__global__ void __launch_bounds__(max_threads) sample_kernel(const __grid_constant__ Sample call) {
  constexpr int width = Access::width;
  const Grid& grid = call.step.grid;
  const Place place = place_of<Access>(grid, call.tiles, blockIdx.x, threadIdx.x);
  if (!place.has_columns) return;
  const Inputs<Access, Path> in(call.step, place);
  const typename Access::Columns out(grid, call.z, place);

  for (int turn = 0; turn < call.tiles.turns; ++turn) {
    const int row = place.row + turn * call.tiles.rows;
    if (row >= grid.rows) return;
    const auto q = in.load_q(row);
    const auto source = in.load_source(row);
    Values<typename Access::T, width> z;
    Path::with(call.step, [&](auto options) {
      using Options = decltype(options);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const auto gaussian = gaussian_of<Options::variance>(q.mean.at[i], q.raw.at[i], in.parameters.q_map);
        z.at[i] = draw_latent<Options::draw>(gaussian, source.at[i], in.parameters.temperature).z;
      }
    });
    out.store(row, z);
  }
}

}  // namespace

void launch_sample(const Sample& call, cudaStream_t stream) {
  const int blocks = call.step.grid.batch * blocks_per_sample(call.tiles);
  if (call.tiles.width == single_width) {
    return with_singles(call.step, [&](auto access) {
      launch(sample_kernel<decltype(access), AnyPath>, blocks, threads_of(call.tiles), stream, call);
    });
  }
  with_vectors(call.step.q.dtype, [&](auto access) {
    with_options(call.step, [&](auto known) {
      using Known = decltype(known);
      if constexpr (Known::kl == KL::none && Known::draw != Draw::latent && is_hot(Known::variance)) {
        using Path = HotPath<Known, false>;
        launch(sample_kernel<decltype(access), Path>, blocks, threads_of(call.tiles), stream, call);
      }
    });
  });
}

}  // namespace ladder_kernels::cuda
