#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "host.h"

namespace ladder_kernels::cuda {
namespace {

constexpr int most_turns = 32;

void run(Forward& call, const Outputs& out, const at::TensorOptions& options) {
  Grid& grid = call.step.grid;
  collapse_space(grid, {&call.step.q, &call.step.p, &call.step.source, &call.z, &call.kl});
  const bool vectors = take_vectors(call.step, {&call.z}, {&call.kl});
  call.tiles = tiles_of(grid, vectors ? vector_width : single_width, most_turns);
  const at::Tensor partials = at::empty(partials_bytes(call.step, call.tiles), options.dtype(at::kByte));
  set_partials(call, partials.data_ptr());

  const auto& [z, samplewise, restricted, channelwise, spatial, logprob_q, largest, kl] = out;
  const OptionalTensor &row_sums = grid.channels_inner ? spatial : channelwise,
                       &column_sums = grid.channels_inner ? channelwise : spatial;
  const Sums sums{data_of(samplewise),  data_of(restricted),  data_of(row_sums),
                  data_of(column_sums), data_of(logprob_q),   data_of(largest)};
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  launch_forward(call, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  launch_sums(call, sums, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

Outputs forward(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, const Options& options) {
  Forward call{step_of(q, p, source, options)};
  const Grid& grid = call.step.grid;
  const c10::cuda::CUDAGuard guard(q.device());
  if (options.window) {
    call.window = window_of(*options.window, grid);
    call.has_window = true;
  }
  const auto sums = call.step.computed_in_double ? at::kDouble : at::kFloat;
  Outputs out = empty_outputs(q, options, sums);
  const OptionalTensor &z = out[0], &element_kl = out[7];
  if (z) call.z = latent_view(*z, grid);
  if (element_kl) call.kl = latent_view(*element_kl, grid);
  q.numel() == 0 ? fill_empty(out) : run(call, out, q.options().dtype(sums));
  return out;
}

at::Tensor sample(const at::Tensor& q, const OptionalTensor& source, const Options& options) {
  Sample call{step_of(q, {}, source, options)};
  Grid& grid = call.step.grid;
  const c10::cuda::CUDAGuard guard(q.device());
  at::Tensor z = empty_dense(q, grid.batch, q.size(1) / 2, q.scalar_type(), options.channels_last);
  if (q.numel() == 0) return z;
  call.z = latent_view(z, grid);
  collapse_space(grid, {&call.step.q, &call.step.source, &call.z});
  call.tiles = tiles_of(grid, take_vectors(call.step, {&call.z}) ? vector_width : single_width, most_turns);
  launch_sample(call, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return z;
}

}  // namespace ladder_kernels::cuda
