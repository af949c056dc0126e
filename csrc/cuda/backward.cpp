#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "host.h"

namespace ladder_kernels::cuda {
namespace {

constexpr int most_turns = 8;

// What nothing flows through is not read.
void drop_unused(Step& step, const Used& used) {
  step.kl = used.kl;
  step.draw = used.draw;
  if (step.kl == KL::none) step.p = View{};
  if (step.draw != Draw::mode) return;
  step.source = View{};
  step.seed = nullptr;
}

void set_incoming(Backward& call, const OutputGradients& grads, const std::optional<WindowSides>& window) {
  const Grid& grid = call.step.grid;
  if (grads.z) call.grad_z = latent_view(*grads.z, grid);
  if (grads.elementwise) call.grad_elementwise = latent_view(*grads.elementwise, grid);
  if (grads.samplewise) call.grad_samplewise = sample_view(*grads.samplewise, grid);
  if (grads.channelwise) call.grad_channelwise = channel_view(*grads.channelwise, grid);
  if (grads.spatial) call.grad_spatial = space_view(*grads.spatial, grid);
  if (grads.log_q) call.grad_log_q = sample_view(*grads.log_q, grid);
  if (grads.restricted) call.grad_restricted = sample_view(*grads.restricted, grid);
  if (window) {
    call.window = window_of(*window, grid);
    call.has_window = grads.restricted.has_value();
  }
}

void run(Backward& call) {
  Step& step = call.step;
  Grid& grid = step.grid;
  collapse_space(grid, {&step.q, &step.p, &step.source, &call.grad_z, &call.grad_elementwise, &call.grad_spatial,
                        &call.grad_q, &call.grad_p, &call.grad_latent});
  const bool shared_p = call.grad_p.data != nullptr && grid.batch > 1 && call.grad_p.batch == 0;
  const bool vectors =
      take_vectors(step, {&call.grad_z, &call.grad_q, &call.grad_p, &call.grad_latent}, {&call.grad_elementwise});
  call.tiles = tiles_of(grid, vectors ? vector_width : single_width, shared_p ? 1 : most_turns);
  launch_backward(call, shared_p, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

Gradients backward(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, const Options& options,
                   const OutputGradients& given, Needs needs) {
  Backward call{step_of(q, p, source, options)};
  const Grid& grid = call.step.grid;
  const std::int64_t channels = q.size(1) / 2;
  const c10::cuda::CUDAGuard guard(q.device());

  const OutputGradients grads =
      check_gradients(given, q, options, call.step.computed_in_double ? at::kDouble : at::kFloat);
  set_incoming(call, grads, options.window);
  const Used used = used_by(grads, options);
  if (!used.variances) return {gradient_of_means(grads, q, needs.q, options.channels_last), {}, {}};
  drop_unused(call.step, used);

  OptionalTensor grad_q, grad_p, grad_latent;
  if (needs.q) {
    grad_q = empty_dense(q, grid.batch, 2 * channels, q.scalar_type(), options.channels_last);
    call.grad_q = packed_view(*grad_q, grid);
  }
  if (needs.p && p && used.kl != KL::none) {
    grad_p = empty_dense(q, p->size(0), 2 * channels, p->scalar_type(), options.channels_last);
    call.grad_p = packed_view(*grad_p, grid);
  }
  if (needs.latent && used.draw == Draw::latent) {
    grad_latent = empty_dense(q, grid.batch, channels, source->scalar_type(), options.channels_last);
    call.grad_latent = latent_view(*grad_latent, grid);
  }
  if (q.numel() > 0) {
    run(call);
  } else if (grad_p) {
    grad_p->zero_();  // a p of batch 1 and no samples
  }
  return {grad_q, grad_p, grad_latent};
}

}  // namespace ladder_kernels::cuda
