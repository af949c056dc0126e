#include <vector>

#include "host.h"

namespace ladder_kernels::cpu {
namespace {

// Gradients of the KL's sums, shared by all positions of a channel (batch, channels) and by all channels of a position
// (batch, positions); the latter empty if there are none.
struct SharedGradients {
  std::vector<double> by_channel, by_position;
};

// Calls `use` with the values of `grad`, in order.
template <class Use>
void with_values(const at::Tensor& grad, const Use& use) {
  const at::Tensor values = grad.contiguous();
  values.scalar_type() == at::kDouble ? use(values.const_data_ptr<double>()) : use(values.const_data_ptr<float>());
}

// Adds `grad` (batch,) or (batch, ...) to `totals`, each of its values to `count` consecutive ones.
void add(std::vector<double>& totals, const OptionalTensor& grad, std::int64_t count) {
  if (!grad) return;
  with_values(*grad, [&](const auto* values) {
    for (std::size_t i = 0; i < totals.size(); ++i) totals[i] += values[i / count];
  });
}

// Adds `grad` (batch,) to the positions inside the window.
void add_to_window(std::vector<double>& totals, const at::Tensor& grad, const Grid& grid, const WindowSides& window) {
  with_values(grad, [&](const auto* values) {
    for (std::int64_t plane = 0; plane < grid.batch * grid.space[0]; ++plane) {
      for (std::int64_t y = window[0]; y < window[1]; ++y) {
        double* const row = totals.data() + (plane * grid.space[1] + y) * grid.space[2];
        for (std::int64_t x = window[2]; x < window[3]; ++x) row[x] += values[plane / grid.space[0]];
      }
    }
  });
}

SharedGradients shared_gradients(const Grid& grid, const std::optional<WindowSides>& window,
                                 const OutputGradients& grads) {
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
at::Tensor empty_packed(const at::Tensor& packed, bool channels_last, const Grid& grid, View& mean, View& raw) {
  at::Tensor grad = empty_dense(packed, packed.size(0), packed.size(1), packed.scalar_type(), channels_last);
  mean = half_view(grad, 0, grid);
  raw = half_view(grad, 1, grid);
  return grad;
}

}  // namespace

Gradients backward(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, const Options& options,
                   const OutputGradients& given, Needs needs) {
  Backward call{step_of(q, p, source, options)};
  Step& step = call.step;
  const Grid& grid = step.grid;
  const OutputGradients grads = check_gradients(given, q, options, step.in_double ? at::kDouble : at::kFloat);
  const Used used = used_by(grads, options);
  if (!used.variances) return {gradient_of_means(grads, q, needs.q, options.channels_last), {}, {}};
  step.draw = used.draw;
  step.kl = used.kl;

  const auto [by_channel, by_position] = shared_gradients(grid, options.window, grads);
  std::vector<double> log_q(grid.batch);
  add(log_q, grads.log_q, 1);
  call.by_channel = by_channel.data();
  call.by_position = by_position.empty() ? nullptr : by_position.data();
  call.log_q = log_q.data();
  if (grads.z) call.grad_z = view_of(*grads.z, grid);
  if (grads.elementwise) call.grad_kl = view_of(*grads.elementwise, grid);

  OptionalTensor grad_q, grad_p, grad_latent;
  at::Tensor p_mean_total, p_raw_total;
  if (needs.q) grad_q = empty_packed(q, options.channels_last, grid, call.grads.q_mean, call.grads.q_raw);
  if (needs.p && p && step.kl != KL::none) {
    grad_p = empty_packed(*p, options.channels_last, grid, call.grads.p_mean, call.grads.p_raw);
    if (p->size(0) != grid.batch) {
      p_mean_total = empty_dense(q, 1, grid.channels, at::kDouble, options.channels_last);
      p_raw_total = empty_dense(q, 1, grid.channels, at::kDouble, options.channels_last);
      call.p_mean_total = p_mean_total.data_ptr<double>();
      call.p_raw_total = p_raw_total.data_ptr<double>();
      call.grads.p_mean = call.grads.p_raw = View{};
    }
  }
  if (needs.latent && step.draw == Draw::latent) {
    grad_latent = empty_dense(q, grid.batch, grid.channels, source->scalar_type(), options.channels_last);
    call.grads.latent = view_of(*grad_latent, grid);
  }

  run(call, units_per_sample(grid) * (call.p_mean_total ? 1 : grid.batch));
  if (call.p_mean_total) {
    grad_p->narrow(1, 0, grid.channels).copy_(p_mean_total);
    grad_p->narrow(1, grid.channels, grid.channels).copy_(p_raw_total);
  }
  return {grad_q, grad_p, grad_latent};
}

}  // namespace ladder_kernels::cpu
