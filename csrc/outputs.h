// The outputs of a forward pass.
#pragma once

#include <ATen/ops/empty.h>

#include <limits>

#include "formulas.h"
#include "step.h"
#include "tensors.h"

namespace ladder_kernels {

// Uninitialised, for packed parameters q; sums in dtype `sums`. Those not asked for are left out, z where it is given.
inline Outputs empty_outputs(const at::Tensor& q, Draw draw, at::ScalarType sums, bool restricted, bool elementwise) {
  const std::int64_t batch = q.size(0), channels = q.size(1) / 2;
  const auto options = q.options().dtype(sums);
  OptionalTensor z, kl_restricted, kl_elementwise;
  if (draw != Draw::latent) z = empty_dense(q, batch, channels, q.scalar_type());
  if (restricted) kl_restricted = at::empty({batch}, options);
  if (elementwise) kl_elementwise = empty_dense(q, batch, channels, sums);
  return {z,
          at::empty({batch}, options),
          kl_restricted,
          at::empty({batch, channels}, options),
          at::empty(spatial_shape(q), options),
          at::empty({batch}, options),
          at::empty({}, options),
          kl_elementwise};
}

// The sums of no elements.
inline void fill_empty(Outputs& out) {
  auto& [z, samplewise, restricted, channelwise, spatial, logprob_q, qvar_max, kl] = out;
  for (at::Tensor* const sum : {&samplewise, &channelwise, &spatial, &logprob_q}) sum->zero_();
  if (restricted) restricted->zero_();
  qvar_max.fill_(-std::numeric_limits<double>::infinity());
}

}  // namespace ladder_kernels
