#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../outputs.h"
#include "arguments.h"
#include "geometry.h"
#include "kernels.h"

namespace ladder_kernels::cuda {
namespace {

constexpr int max_steps = 32;

void run(Forward& call, const Outputs& out, const at::TensorOptions& options) {
  Grid& grid = call.step.grid;
  const bool computes_in_double = in_double(call.step);
  collapse_space(grid, {&call.step.q, &call.step.p, &call.step.source, &call.z, &call.kl});
  const bool vectors = is_hot(call.step) &&
                       take_vectors(grid, {&call.step.q, &call.step.p, &call.step.source, &call.z, &call.kl});
  call.tiles = tiles_of(grid, vectors ? vector_width : 1, max_steps);
  const at::Tensor partials = at::empty(partials_size(grid, call.tiles), options);
  call.partials = partials.data_ptr();

  const auto& [z, samplewise, restricted, channelwise, spatial, logprob_q, qvar_max, kl] = out;
  const OptionalTensor &row_sums = grid.channels_inner ? spatial : channelwise,
                       &column_sums = grid.channels_inner ? channelwise : spatial;
  const Sums sums{data_of(samplewise),  data_of(restricted),  data_of(row_sums),
                  data_of(column_sums), logprob_q.data_ptr(), qvar_max.data_ptr()};
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  launch_forward(call, computes_in_double, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  launch_sums(call, sums, computes_in_double, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

Outputs forward(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
                std::string_view kl, bool stable, std::optional<double> logvar_max, double temperature,
                at::OptionalIntArrayRef window, bool elementwise, bool channels_last) {
  Forward call{step_of(q, p, source, draw, kl, stable, logvar_max, temperature, channels_last)};
  const Grid& grid = call.step.grid;
  const c10::cuda::CUDAGuard guard(q.device());
  if (window) {
    call.window = window_of(*window, grid);
    call.has_window = true;
  }
  const auto sums = in_double(call.step) ? at::kDouble : at::kFloat;
  Outputs out = empty_outputs(q, call.step.draw, call.step.kl, sums, call.has_window, elementwise, channels_last);
  const OptionalTensor &z = std::get<0>(out), &element_kl = std::get<7>(out);
  if (z) call.z = latent_view(*z, grid);
  if (element_kl) call.kl = latent_view(*element_kl, grid);
  q.numel() == 0 ? fill_empty(out) : run(call, out, q.options().dtype(sums));
  return out;
}

at::Tensor sample(const at::Tensor& q, const OptionalTensor& source, std::string_view draw,
                  std::string_view /*kl*/, bool stable, std::optional<double> logvar_max, double temperature,
                  at::OptionalIntArrayRef /*window*/, bool /*elementwise*/, bool channels_last) {
  Sample call{step_of(q, {}, source, draw, "none", stable, logvar_max, temperature, channels_last)};
  Grid& grid = call.step.grid;
  const c10::cuda::CUDAGuard guard(q.device());
  at::Tensor z = empty_dense(q, grid.batch, q.size(1) / 2, q.scalar_type(), channels_last);
  if (q.numel() == 0) return z;
  call.z = latent_view(z, grid);
  collapse_space(grid, {&call.step.q, &call.step.source, &call.z});
  const bool vectors = is_hot(call.step) && take_vectors(grid, {&call.step.q, &call.step.source, &call.z});
  call.tiles = tiles_of(grid, vectors ? vector_width : 1, max_steps);
  launch_sample(call, in_double(call.step), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return z;
}

}  // namespace ladder_kernels::cuda
