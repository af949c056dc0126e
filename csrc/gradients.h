// The gradients that arrive in a backward pass, and the parts of a step that they flow through. A term whose incoming
// gradient is absent does not exist: it is left out, for 0 times an infinity or a NaN would be a NaN.
#pragma once

#include "checks.h"

namespace ladder_kernels {

// Gradients of the outputs, in the order of ladder_kernels.backends.step.StepGrads; qvar_max has none.
struct OutputGradients {
  OptionalTensor z, samplewise, restricted, channelwise, spatial, log_q, elementwise;

  bool have_kl() const { return samplewise || restricted || channelwise || spatial || elementwise; }
};

// In the right shapes, z's as q and the others in dtype `sums`; and only of outputs that the step has.
inline OutputGradients check_gradients(const OutputGradients& grads, const at::Tensor& q, Draw draw, KL kl,
                                       bool has_window, at::ScalarType sums) {
  TORCH_CHECK_VALUE(!grads.z || draw != Draw::latent, "a given latent has no output z, and so no gradient of it");
  TORCH_CHECK_VALUE(!grads.have_kl() || kl != KL::none, "kl 'none' has no KL, and so no gradient of one");
  TORCH_CHECK_VALUE(!grads.restricted || has_window, "without a window there is no gradient of kl_restricted");
  const std::int64_t batch = q.size(0), channels = q.size(1) / 2;
  const auto checked = [&](const OptionalTensor& grad, const char* name, at::IntArrayRef shape,
                           at::ScalarType dtype) -> OptionalTensor {
    if (!grad) return std::nullopt;
    check_tensor(*grad, name, shape, q);
    return grad->to(dtype);
  };
  return {checked(grads.z, "the gradient of z", latent_shape(q), q.scalar_type()),
          checked(grads.samplewise, "the gradient of kl_samplewise", {batch}, sums),
          checked(grads.restricted, "the gradient of kl_restricted", {batch}, sums),
          checked(grads.channelwise, "the gradient of kl_channelwise", {batch, channels}, sums),
          checked(grads.spatial, "the gradient of kl_spatial", spatial_shape(q), sums),
          checked(grads.log_q, "the gradient of logprob_q", {batch}, sums),
          checked(grads.elementwise, "the gradient of kl_elementwise", latent_shape(q), sums)};
}

// What of a step gradients flow through, as `step_gradients` wants it.
struct Used {
  Draw draw;
  KL kl;
  bool log_variances;  // of q
};

inline Used used_by(const OutputGradients& grads, Draw draw, KL kl) {
  const KL used_kl = grads.have_kl() ? kl : KL::none;
  const bool eps = used_kl == KL::monte_carlo || (draw == Draw::latent ? grads.log_q : grads.z).has_value();
  const Draw used_draw = eps ? draw : Draw::mode;
  return {used_draw, used_kl, used_draw != Draw::mode || used_kl != KL::none || grads.log_q.has_value()};
}

// The gradient of q where nothing flows through its log-variances: z's for the means.
inline OptionalTensor gradient_of_means(const OutputGradients& grads, const at::Tensor& q, bool needed,
                                        bool channels_last) {
  if (!needed) return std::nullopt;
  const std::int64_t channels = q.size(1) / 2;
  at::Tensor grad_q = empty_dense(q, q.size(0), 2 * channels, q.scalar_type(), channels_last);
  grad_q.zero_();
  if (grads.z) grad_q.narrow(1, 0, channels).copy_(*grads.z);
  return grad_q;
}

}  // namespace ladder_kernels
