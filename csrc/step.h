// The step as ops on tensors. ladder_kernels/backends/step.py says what the arguments mean; their order is the same.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

namespace ladder_kernels {

using OptionalTensor = std::optional<at::Tensor>;

// z, kl_samplewise, kl_restricted, kl_channelwise, kl_spatial, logprob_q, qvar_max, kl_elementwise.
using Outputs = std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor, at::Tensor,
                           at::Tensor, OptionalTensor>;

using ForwardOp = Outputs(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source,
                          std::string_view draw, std::string_view kl, bool stable, std::optional<double> logvar_max,
                          double temperature, at::OptionalIntArrayRef window, bool elementwise, bool channels_last);

using SampleOp = at::Tensor(const at::Tensor& q, const OptionalTensor& source, std::string_view draw,
                            std::string_view kl, bool stable, std::optional<double> logvar_max, double temperature,
                            at::OptionalIntArrayRef window, bool elementwise, bool channels_last);

// Of q, p and a given latent.
using Gradients = std::tuple<OptionalTensor, OptionalTensor, OptionalTensor>;

using BackwardOp = Gradients(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source,
                             std::string_view draw, std::string_view kl, bool stable,
                             std::optional<double> logvar_max, double temperature, at::OptionalIntArrayRef window,
                             bool elementwise, bool channels_last,
                             const OptionalTensor& grad_z, const OptionalTensor& grad_samplewise,
                             const OptionalTensor& grad_restricted, const OptionalTensor& grad_channelwise,
                             const OptionalTensor& grad_spatial, const OptionalTensor& grad_logprob_q,
                             const OptionalTensor& grad_qvar_max, const OptionalTensor& grad_elementwise, bool needs_q,
                             bool needs_p, bool needs_latent);

namespace cpu {
ForwardOp forward;
SampleOp sample;
BackwardOp backward;
}  // namespace cpu

namespace cuda {
ForwardOp forward;
SampleOp sample;
BackwardOp backward;
}  // namespace cuda

}  // namespace ladder_kernels
