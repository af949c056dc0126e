// The step as ops on tensors: their options, the checks of their arguments, and the tensors that they make.
// ladder_kernels/backends/step.py says what the arguments mean. A Python caller gets ValueError or TypeError.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "formulas.h"
#include "latent.h"

namespace ladder_kernels {

using OptionalTensor = std::optional<at::Tensor>;

// Rows [w0, w1) and columns [w2, w3) of the last two dims.
using WindowSides = std::array<std::int64_t, 4>;

// Everything about a call that is not a tensor.
struct Options {
  Draw draw;
  bool philox;  // noise of a seed
  KL kl;
  Variance variance;
  VarianceMap<double> map;
  double temperature;
  std::optional<WindowSides> window;
  bool elementwise, channels_last;
};

// In the order of StepOutputs in ladder_kernels/backends/step.py; those not asked for are left out.
using Outputs = std::array<OptionalTensor, 8>;
constexpr std::size_t qvar_max = 6;  // the one that has no gradient

// Gradients of the outputs; qvar_max has none.
struct OutputGradients {
  OptionalTensor z, samplewise, restricted, channelwise, spatial, log_q, elementwise;

  bool have_kl() const { return samplewise || restricted || channelwise || spatial || elementwise; }
};

inline OutputGradients named(const Outputs& grads) {
  return {grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], grads[7]};
}

// Of q, p and a given latent.
using Gradients = std::array<OptionalTensor, 3>;
struct Needs {
  bool q, p, latent;
};

using ForwardOp = Outputs(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source,
                          const Options& options);
// z alone, without a KL.
using SampleOp = at::Tensor(const at::Tensor& q, const OptionalTensor& source, const Options& options);
using BackwardOp = Gradients(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source,
                             const Options& options, const OutputGradients& grads, Needs needs);

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

// ---- Options.

inline Draw draw_named(std::string_view name) {
  if (name == "noise" || name == "seed") return Draw::noise;
  if (name == "latent") return Draw::latent;
  TORCH_CHECK_VALUE(name == "mode", "draw must be noise, seed, latent or mode, got ", name);
  return Draw::mode;
}

inline KL kl_named(std::string_view name) {
  if (name == "monte_carlo") return KL::monte_carlo;
  if (name == "analytic") return KL::analytic;
  TORCH_CHECK_VALUE(name == "none", "kl must be monte_carlo, analytic or none, got ", name);
  return KL::none;
}

inline Variance variance_named(std::string_view name) {
  if (name == "stable") return Variance::stable;
  if (name == "exp") return Variance::exp;
  if (name == "logstd") return Variance::logstd;
  TORCH_CHECK_VALUE(name == "softplus", "variance must be stable, exp, logstd or softplus, got ", name);
  return Variance::softplus;
}

// A Step of ladder_kernels/backends/step.py: its fields in their order, the variance map's own in its place.
inline Options options_of(const c10::ivalue::Tuple& step) {
  auto field = step.elements().begin();
  const auto bound = [&](double if_none) { return field->isNone() ? (++field, if_none) : (field++)->toDouble(); };
  Options options{};
  const std::string& draw = (field++)->toStringRef();
  options.draw = draw_named(draw);
  options.philox = draw == "seed";
  options.kl = kl_named((field++)->toStringRef());
  options.variance = variance_named((field++)->toStringRef());
  constexpr double infinity = std::numeric_limits<double>::infinity();
  options.map.raw_min = bound(-infinity);
  options.map.raw_max = bound(infinity);
  const double beta = (field++)->toDouble();
  options.map.twice_beta = 2 * beta;
  options.map.inverse_beta = 1 / beta;
  options.map.floor = (field++)->toDouble();
  options.variance = with_floor(options.variance, options.map.floor);
  options.temperature = (field++)->toDouble();
  if (const c10::IValue& window = *field++; !window.isNone()) {
    const c10::List<std::int64_t> sides = window.toIntList();
    TORCH_CHECK_VALUE(sides.size() == 4, "window must be rows and columns [start, stop), got ", window);
    options.window = WindowSides{sides[0], sides[1], sides[2], sides[3]};
  }
  options.elementwise = (field++)->toBool();
  options.channels_last = (field++)->toBool();
  return options;
}

// A step as it was given, and what it says.
struct StepArguments {
  explicit StepArguments(std::vector<c10::IValue> fields)
      : given(c10::ivalue::Tuple::create(std::move(fields))), options(options_of(*given)) {}

  c10::intrusive_ptr<c10::ivalue::Tuple> given;
  Options options;
};

// ---- Shapes.

inline LatentShape shape_of(const at::Tensor& q, bool channels_last) {
  LatentShape shape{q.size(0), q.size(1) / 2, {1, 1, 1}, 1, false, 0, 0};
  for (std::int64_t dim = 2; dim < q.dim(); ++dim) {
    shape.space[dim + 3 - q.dim()] = q.size(dim);
    shape.positions *= q.size(dim);
  }
  // With a single position both orders are the same memory, and one long row beats many short ones.
  shape.channels_inner = channels_last || shape.positions == 1;
  shape.rows = shape.channels_inner ? shape.positions : shape.channels;
  shape.columns = shape.channels_inner ? shape.channels : shape.positions;
  return shape;
}

inline Dtype dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf: return Dtype::float16;
    case at::kBFloat16: return Dtype::bfloat16;
    case at::kFloat: return Dtype::float32;
    case at::kDouble: return Dtype::float64;
    default: TORCH_CHECK_TYPE(false, "expected float16, bfloat16, float32 or float64, got ", tensor.scalar_type());
  }
}

// Whether the step is computed in float64: any of its tensors is.
inline bool computed_in_double(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source) {
  const auto is_double = [](const OptionalTensor& tensor) { return tensor && tensor->scalar_type() == at::kDouble; };
  return is_double(q) || is_double(p) || is_double(source);
}

// Shapes that belong to packed parameters q (B, 2C, *S): (B, C, *S) and (B, *S).
inline std::vector<std::int64_t> latent_shape(const at::Tensor& q) {
  auto shape = q.sizes().vec();
  shape[1] /= 2;
  return shape;
}

inline std::vector<std::int64_t> spatial_shape(const at::Tensor& q) {
  auto shape = q.sizes().vec();
  shape.erase(shape.begin() + 1);
  return shape;
}

// ---- Checks.

// On q's device, in this shape.
inline void check_tensor(const at::Tensor& tensor, const char* name, at::IntArrayRef shape, const at::Tensor& q) {
  TORCH_CHECK_VALUE(tensor.device() == q.device(), name, " must be on q's device ", q.device(), ", got ",
                    tensor.device());
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
}

inline void check_source(const at::Tensor& q, const OptionalTensor& source, const Options& options) {
  if (options.draw == Draw::mode) return;
  const char* const draw = options.philox ? "seed" : options.draw == Draw::noise ? "noise" : "latent";
  TORCH_CHECK_VALUE(source.has_value(), "draw '", draw, "' needs a source");
  if (options.philox) {
    TORCH_CHECK_VALUE(source->scalar_type() == at::kLong && source->numel() == 1,
                      "seed must be one int64 element, got ", source->numel(), " of ", source->scalar_type());
    check_tensor(*source, "seed", source->sizes(), q);
  } else {
    check_tensor(*source, "source", latent_shape(q), q);
  }
}

inline void check_packed(const at::Tensor& q) {
  TORCH_CHECK_VALUE(q.dim() >= 3 && q.dim() <= 5 && q.size(1) > 0 && q.size(1) % 2 == 0,
                    "q must be (batch, 2 * channels, 1 to 3 spatial dims), got ", q.sizes());
}

inline void check_inputs(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source,
                         const Options& options, at::DeviceType device) {
  TORCH_CHECK_VALUE(q.device().type() == device, "q must be on ", device == at::kCPU ? "the CPU" : "a GPU", ", got ",
                    q.device());
  check_packed(q);
  if (p) {
    auto shape = q.sizes().vec();
    if (p->dim() > 0 && p->size(0) == 1) shape[0] = 1;
    check_tensor(*p, "p", shape, q);
    TORCH_CHECK_VALUE(options.kl != KL::none, "kl 'none' needs no p, got one of shape ", p->sizes());
  }
  check_source(q, source, options);
}

// Rows and columns [start, stop) of the last two dims, `height` and `width` long.
inline void check_window(const WindowSides& w, std::int64_t height, std::int64_t width) {
  TORCH_CHECK_VALUE(0 <= w[0] && w[0] <= w[1] && w[1] <= height && 0 <= w[2] && w[2] <= w[3] &&
                        w[3] <= width,
                    "window must be rows and columns [start, stop) of the latent, got ", at::IntArrayRef(w));
}

// In the right shapes, z's as q and the others in dtype `sums`; and only of outputs that the step has.
inline OutputGradients check_gradients(const OutputGradients& grads, const at::Tensor& q, const Options& options,
                                       at::ScalarType sums) {
  TORCH_CHECK_VALUE(!grads.z || options.draw != Draw::latent,
                    "a given latent has no output z, and so no gradient of it");
  TORCH_CHECK_VALUE(!grads.have_kl() || options.kl != KL::none, "kl 'none' has no KL, and so no gradient of one");
  TORCH_CHECK_VALUE(!grads.restricted || options.window,
                    "without a window there is no gradient of kl_samplewise_restricted");
  const std::int64_t batch = q.size(0), channels = q.size(1) / 2;
  const auto checked = [&](const OptionalTensor& grad, const char* name, at::IntArrayRef shape,
                           at::ScalarType dtype) -> OptionalTensor {
    if (!grad) return std::nullopt;
    check_tensor(*grad, name, shape, q);
    return grad->to(dtype);
  };
  return {checked(grads.z, "the gradient of z", latent_shape(q), q.scalar_type()),
          checked(grads.samplewise, "the gradient of kl_samplewise", {batch}, sums),
          checked(grads.restricted, "the gradient of kl_samplewise_restricted", {batch}, sums),
          checked(grads.channelwise, "the gradient of kl_channelwise", {batch, channels}, sums),
          checked(grads.spatial, "the gradient of kl_spatial", spatial_shape(q), sums),
          checked(grads.log_q, "the gradient of logprob_q", {batch}, sums),
          checked(grads.elementwise, "the gradient of kl_elementwise", latent_shape(q), sums)};
}

// ---- What the dispatcher would do.

// Neither lazily negated nor zeros without memory.
inline at::Tensor materialized(const at::Tensor& tensor) {
  return tensor.is_neg() || tensor._is_zerotensor() ? tensor.clone() : tensor;
}

inline OptionalTensor materialized(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(materialized(*tensor)) : std::nullopt;
}

// ---- What the ops make.

// Uninitialised (batch, channels, *S) with the space of `packed`, dense: channels-last or contiguous.
inline at::Tensor empty_dense(const at::Tensor& packed, std::int64_t batch, std::int64_t channels,
                              at::ScalarType dtype, bool channels_last) {
  auto sizes = packed.sizes().vec();
  sizes[0] = batch;
  sizes[1] = channels;
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = channels_last ? channels : 1;
  for (std::size_t dim = sizes.size() - 1; dim >= 2; --dim) {
    strides[dim] = stride;
    stride *= std::max<std::int64_t>(sizes[dim], 1);
  }
  strides[1] = channels_last ? 1 : stride;
  strides[0] = channels_last ? stride : stride * channels;
  return at::empty_strided(sizes, strides, packed.options().dtype(dtype));
}

// Uninitialised, for packed parameters q; sums in dtype `sums`. Those not asked for are left out, z where it is given.
inline Outputs empty_outputs(const at::Tensor& q, const Options& options, at::ScalarType sums) {
  const std::int64_t batch = q.size(0), channels = q.size(1) / 2;
  const auto dense = [&](at::ScalarType dtype) {
    return empty_dense(q, batch, channels, dtype, options.channels_last);
  };
  const auto empty = [&](at::IntArrayRef shape) { return at::empty(shape, q.options().dtype(sums)); };
  OptionalTensor z, samplewise, restricted, channelwise, spatial, elementwise;
  if (options.draw != Draw::latent) z = dense(q.scalar_type());
  if (options.kl != KL::none) {
    samplewise = empty({batch});
    channelwise = empty({batch, channels});
    spatial = empty(spatial_shape(q));
    if (options.window) restricted = empty({batch});
    if (options.elementwise) elementwise = dense(sums);
  }
  return {z, samplewise, restricted, channelwise, spatial, empty({batch}), empty({}), elementwise};
}

// Null where there is no tensor.
template <class T = void>
T* data_of(const OptionalTensor& tensor) {
  return tensor ? static_cast<T*>(tensor->data_ptr()) : nullptr;
}

// The sums of no elements.
inline void fill_empty(Outputs& out) {
  auto& [z, samplewise, restricted, channelwise, spatial, logprob_q, largest, kl] = out;
  for (OptionalTensor* const sum : {&samplewise, &restricted, &channelwise, &spatial}) {
    if (*sum) (*sum)->zero_();
  }
  logprob_q->zero_();
  largest->fill_(-std::numeric_limits<double>::infinity());
}

// What of a step gradients flow through, as `step_gradients` wants it. A term whose incoming gradient is absent does
// not exist: it is left out, for 0 times an infinity or a NaN would be a NaN.
struct Used {
  Draw draw;
  KL kl;
  bool variances;  // of q
};

inline Used used_by(const OutputGradients& grads, const Options& options) {
  const KL kl = grads.have_kl() ? options.kl : KL::none;
  const bool eps = kl == KL::monte_carlo || (options.draw == Draw::latent ? grads.log_q : grads.z).has_value();
  const Draw draw = eps ? options.draw : Draw::mode;
  return {draw, kl, draw != Draw::mode || kl != KL::none || grads.log_q.has_value()};
}

// The gradient of q where nothing flows through its variances: z's for the means.
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
