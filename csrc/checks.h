// The checks of the ops' arguments. A Python caller gets ValueError or TypeError.
#pragma once

#include "formulas.h"
#include "step.h"
#include "tensors.h"

namespace ladder_kernels {

// On q's device, in this shape.
inline void check_tensor(const at::Tensor& tensor, const char* name, at::IntArrayRef shape, const at::Tensor& q) {
  TORCH_CHECK_VALUE(tensor.device() == q.device(), name, " must be on q's device ", q.device(), ", got ",
                    tensor.device());
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
}

inline void check_parameters(const at::Tensor& q, const OptionalTensor& p, at::DeviceType device) {
  TORCH_CHECK_VALUE(q.device().type() == device, "q must be on ", device == at::kCPU ? "the CPU" : "a GPU", ", got ",
                    q.device());
  TORCH_CHECK_VALUE(q.dim() >= 3 && q.dim() <= 5 && q.size(1) > 0 && q.size(1) % 2 == 0,
                    "q must be (batch, 2 * channels, 1 to 3 spatial dims), got ", q.sizes());
  if (!p) return;
  auto shape = q.sizes().vec();
  if (p->dim() > 0 && p->size(0) == 1) shape[0] = 1;
  check_tensor(*p, "p", shape, q);
}

// The op's argument `kl`, which without a KL wants no p.
inline KL check_kl(std::string_view kl, const OptionalTensor& p) {
  if (kl == "monte_carlo") return KL::monte_carlo;
  if (kl == "analytic") return KL::analytic;
  TORCH_CHECK_VALUE(kl == "none", "kl must be monte_carlo, analytic or none, got ", kl);
  TORCH_CHECK_VALUE(!p, "kl 'none' needs no p, got one of shape ", p->sizes());
  return KL::none;
}

// What a source is, by the op's argument `draw`: "noise" and "seed" are both `Draw::noise`.
inline Draw check_source(const at::Tensor& q, const OptionalTensor& source, std::string_view draw) {
  if (draw == "mode") return Draw::mode;
  TORCH_CHECK_VALUE(draw == "noise" || draw == "seed" || draw == "latent",
                    "draw must be noise, seed, latent or mode, got ", draw);
  TORCH_CHECK_VALUE(source.has_value(), "draw '", draw, "' needs a source");
  if (draw == "seed") {
    TORCH_CHECK_VALUE(source->scalar_type() == at::kLong && source->numel() == 1,
                      "seed must be one int64 element, got ", source->numel(), " of ", source->scalar_type());
    check_tensor(*source, "seed", source->sizes(), q);
  } else {
    check_tensor(*source, "source", latent_shape(q), q);
  }
  return draw == "latent" ? Draw::latent : Draw::noise;
}

// Rows and columns [start, stop) of the last two dims, `height` and `width` long.
inline void check_window(at::IntArrayRef w, std::int64_t height, std::int64_t width) {
  TORCH_CHECK_VALUE(w.size() == 4 && 0 <= w[0] && w[0] <= w[1] && w[1] <= height && 0 <= w[2] && w[2] <= w[3] &&
                        w[3] <= width,
                    "window must be rows and columns [start, stop) of the latent, got ", w);
}

}  // namespace ladder_kernels
