// The outputs of a forward pass.
#pragma once

#include <ATen/ops/empty.h>

#include <limits>

#include "formulas.h"
#include "step.h"
#include "tensors.h"

namespace ladder_kernels {

// Uninitialised, for packed parameters q; sums in dtype `sums`. Those not asked for are left out, z where it is given.
inline Outputs empty_outputs(const at::Tensor& q, Draw draw, KL kl, at::ScalarType sums, bool restricted,
                             bool elementwise, bool channels_last) {
  const std::int64_t batch = q.size(0), channels = q.size(1) / 2;
  const auto options = q.options().dtype(sums);
  OptionalTensor z, samplewise, kl_restricted, channelwise, spatial, kl_elementwise;
  if (draw != Draw::latent) z = empty_dense(q, batch, channels, q.scalar_type(), channels_last);
  if (kl != KL::none) {
    samplewise = at::empty({batch}, options);
    channelwise = at::empty({batch, channels}, options);
    spatial = at::empty(spatial_shape(q), options);
    if (restricted) kl_restricted = at::empty({batch}, options);
    if (elementwise) kl_elementwise = empty_dense(q, batch, channels, sums, channels_last);
  }
  return {z, samplewise, kl_restricted, channelwise, spatial, at::empty({batch}, options), at::empty({}, options),
          kl_elementwise};
}

// Null where there is no tensor.
template <class T = void>
T* data_of(const OptionalTensor& tensor) {
  return tensor ? static_cast<T*>(tensor->data_ptr()) : nullptr;
}

// The sums of no elements.
inline void fill_empty(Outputs& out) {
  auto& [z, samplewise, restricted, channelwise, spatial, logprob_q, qvar_max, kl] = out;
  for (OptionalTensor* const sum : {&samplewise, &restricted, &channelwise, &spatial}) {
    if (*sum) (*sum)->zero_();
  }
  logprob_q.zero_();
  qvar_max.fill_(-std::numeric_limits<double>::infinity());
}

}  // namespace ladder_kernels
