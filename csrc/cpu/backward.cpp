#include <ATen/ops/empty.h>

#include <vector>

#include "../gradients.h"
#include "arguments.h"
#include "geometry.h"
#include "run.h"

namespace ladder_kernels::cpu {
namespace {

// Gradients of the KL's sums, shared by all positions of a channel (batch, channels) and by all channels of a position
// (batch, positions); the latter empty if there are none.
struct SharedGradients {
  std::vector<double> by_channel, by_position;
};

// Adds `grad` (batch,) or (batch, ...) to `totals`, each of its values to `count` consecutive ones.
void add(std::vector<double>& totals, const OptionalTensor& grad, std::int64_t count) {
  if (!grad) return;
  const at::Tensor values = grad->to(at::kDouble).contiguous();
  for (std::size_t i = 0; i < totals.size(); ++i) totals[i] += values.const_data_ptr<double>()[i / count];
}

// Adds `grad` (batch,) to the positions inside the window.
void add_to_window(std::vector<double>& totals, const at::Tensor& grad, const Grid& grid, const Window& window) {
  const at::Tensor values = grad.to(at::kDouble).contiguous();
  for (std::int64_t plane = 0; plane < grid.batch * grid.space[0]; ++plane) {
    const double value = values.const_data_ptr<double>()[plane / grid.space[0]];
    for (std::int64_t y = window[0]; y < window[1]; ++y) {
      double* const row = totals.data() + (plane * grid.space[1] + y) * grid.space[2];
      for (std::int64_t x = window[2]; x < window[3]; ++x) row[x] += value;
    }
  }
}

SharedGradients shared_gradients(const Grid& grid, const std::optional<Window>& window, const OutputGradients& grads) {
  SharedGradients shared;
  shared.by_channel.resize(grid.batch * grid.channels);
  add(shared.by_channel, grads.samplewise, grid.channels);
  add(shared.by_channel, grads.channelwise, 1);
  if (grads.spatial || grads.restricted) {
    shared.by_position.resize(grid.batch * grid.positions);
    add(shared.by_position, grads.spatial, 1);
    if (grads.restricted) add_to_window(shared.by_position, *grads.restricted, grid, window.value());
  }
  return shared;
}

// An uninitialised packed gradient, for the kernels to write into its halves.
at::Tensor empty_packed(const at::Tensor& packed, bool channels_last, const Grid& grid, View& mean, View& logvar) {
  at::Tensor grad = empty_dense(packed, packed.size(0), packed.size(1), packed.scalar_type(), channels_last);
  mean = half_view(grad, 0, grid);
  logvar = half_view(grad, 1, grid);
  return grad;
}

}  // namespace

Gradients backward(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
                   std::string_view kl, bool stable, std::optional<double> logvar_max, double temperature,
                   at::OptionalIntArrayRef window, bool /*elementwise*/, bool channels_last,
                   const OptionalTensor& grad_z, const OptionalTensor& grad_samplewise,
                   const OptionalTensor& grad_restricted, const OptionalTensor& grad_channelwise,
                   const OptionalTensor& grad_spatial, const OptionalTensor& grad_logprob_q,
                   const OptionalTensor& /*grad_qvar_max*/, const OptionalTensor& grad_elementwise, bool needs_q,
                   bool needs_p, bool needs_latent) {
  Backward call{step_of(q, p, source, draw, kl, stable, logvar_max, temperature, channels_last)};
  Step& step = call.step;
  const Grid& grid = step.grid;
  const OutputGradients grads =
      check_gradients({grad_z, grad_samplewise, grad_restricted, grad_channelwise, grad_spatial, grad_logprob_q,
                       grad_elementwise},
                      q, step.draw, step.kl, window.has_value(), step.in_double ? at::kDouble : at::kFloat);
  const auto restricted_to = window_of(window, grid);
  const Used used = used_by(grads, step.draw, step.kl);
  if (!used.log_variances) return {gradient_of_means(grads, q, needs_q, channels_last), {}, {}};
  step.draw = used.draw;
  step.kl = used.kl;

  const auto [by_channel, by_position] = shared_gradients(grid, restricted_to, grads);
  std::vector<double> log_q(grid.batch);
  add(log_q, grads.log_q, 1);
  call.by_channel = by_channel.data();
  call.by_position = by_position.empty() ? nullptr : by_position.data();
  call.log_q = log_q.data();
  if (grads.z) call.grad_z = view_of(*grads.z, grid);
  if (grads.elementwise) call.grad_kl = view_of(*grads.elementwise, grid);

  OptionalTensor grad_q, grad_p, grad_latent;
  at::Tensor p_mean_total, p_logvar_total;
  if (needs_q) grad_q = empty_packed(q, channels_last, grid, call.grads.q_mean, call.grads.q_logvar);
  if (needs_p && p && step.kl != KL::none) {
    grad_p = empty_packed(*p, channels_last, grid, call.grads.p_mean, call.grads.p_logvar);
    if (p->size(0) != grid.batch) {
      p_mean_total = empty_dense(q, 1, grid.channels, at::kDouble, channels_last);
      p_logvar_total = empty_dense(q, 1, grid.channels, at::kDouble, channels_last);
      call.p_mean_total = p_mean_total.data_ptr<double>();
      call.p_logvar_total = p_logvar_total.data_ptr<double>();
      call.grads.p_mean = call.grads.p_logvar = View{};
    }
  }
  if (needs_latent && step.draw == Draw::latent) {
    grad_latent = empty_dense(q, grid.batch, grid.channels, source->scalar_type(), channels_last);
    call.grads.latent = view_of(*grad_latent, grid);
  }

  run(call, units_per_sample(grid) * (call.p_mean_total ? 1 : grid.batch));
  if (call.p_mean_total) {
    grad_p->narrow(1, 0, grid.channels).copy_(p_mean_total);
    grad_p->narrow(1, grid.channels, grid.channels).copy_(p_logvar_total);
  }
  return {grad_q, grad_p, grad_latent};
}

}  // namespace ladder_kernels::cpu
