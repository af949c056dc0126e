// A Python extension module with the functions forward, backward and sample of one device.
//
// They are called directly: the dispatcher, with a step's worth of arguments, costs the host more than a small step
// does. What it would do for a kernel is done here; whoever traces or transforms is kept away by
// ladder_kernels/autograd.py.
#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/record_function.h>

#include <cstdio>

#include "autograd.h"
#include "op.h"

namespace ladder_kernels {

// Raises ImportError if torch is not the one that this file is compiled against.
inline void check_torch_version() {
  const std::string version = pybind11::str(pybind11::module_::import("torch").attr("__version__"));
  int major = 0, minor = 0;
  std::sscanf(version.c_str(), "%d.%d", &major, &minor);
  if (major != TORCH_VERSION_MAJOR || minor != TORCH_VERSION_MINOR) {
    throw pybind11::import_error("built for torch " TORCH_VERSION ", this is torch " + version);
  }
}

// The noise of a step, or its seed, of torch's generator where none is given: the numbers that torch.randn and
// torch.randint give.
inline OptionalTensor source_or_fresh(const OptionalTensor& source, const at::Tensor& q, const Options& options) {
  if (source || options.draw != Draw::noise) return source;
  check_packed(q);
  const auto dtype = options.philox ? at::kLong : q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto like = q.options().dtype(dtype);
  if (!options.philox) return at::randn(latent_shape(q), like);
  return at::randint(std::numeric_limits<std::int64_t>::max(), at::IntArrayRef{}, like);
}

template <ForwardOp* native_forward, BackwardOp* native_backward, SampleOp* native_sample>
struct Functions {
  static Outputs forward(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source,
                         const StepArguments& step) {
    RECORD_FUNCTION("ladder_kernels::forward", c10::ArrayRef<const c10::IValue>{});
    return differentiable(q, p, source, step, native_forward);
  }

  static at::Tensor sample(const at::Tensor& q, const OptionalTensor& source, const StepArguments& step) {
    RECORD_FUNCTION("ladder_kernels::sample", c10::ArrayRef<const c10::IValue>{});
    const auto run = [](const at::Tensor& q, const OptionalTensor&, const OptionalTensor& source,
                        const Options& options) { return Outputs{native_sample(q, source, options)}; };
    return *differentiable(q, std::nullopt, source, step, run)[0];
  }

  static Gradients backward(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source,
                            const StepArguments& step, Outputs grads, const std::array<bool, 3>& needs) {
    for (OptionalTensor& grad : grads) grad = materialized(grad);
    return autograd::below_autograd([&] {
      return native_backward(materialized(q), materialized(p), materialized(source), step.options, named(grads),
                             {needs[0], needs[1], needs[2]});
    });
  }

 private:
  template <class Run>
  static Outputs differentiable(const at::Tensor& given_q, const OptionalTensor& given_p,
                                const OptionalTensor& given_source, const StepArguments& step, const Run& run) {
    const at::Tensor q = materialized(given_q);
    const OptionalTensor p = materialized(given_p);
    const OptionalTensor source = source_or_fresh(materialized(given_source), q, step.options);
    const auto requires_grad = [](const OptionalTensor& tensor) { return tensor && tensor->requires_grad(); };
    const bool records = at::GradMode::is_enabled() && (q.requires_grad() || requires_grad(p) || requires_grad(source));
    if (!records) return autograd::below_autograd([&] { return run(q, p, source, step.options); });
    Outputs outputs;
    const auto found = autograd::Differentiable<native_backward>::apply(q, p, source, step, run, &outputs);
    auto differentiated = found.begin();
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (i != qvar_max && outputs[i]) outputs[i] = *differentiated++;
    }
    return outputs;
  }
};

// Fills the extension module.
template <ForwardOp* forward, BackwardOp* backward, SampleOp* sample>
void define(pybind11::module_& module) {
  check_torch_version();
  using F = Functions<forward, backward, sample>;
  using Number = std::optional<double>;
  using Window = std::optional<std::vector<std::int64_t>>;
  // Both extensions may have one.
  pybind11::class_<StepArguments>(module, "Step", pybind11::module_local());
  module.def("step", torch::wrap_pybind_function(
                         [](const std::string& draw, const std::string& kl, const std::string& variance, Number raw_min,
                            Number raw_max, double beta, double floor, double temperature, const Window& window,
                            bool elementwise, bool channels_last) {
                           return StepArguments({draw, kl, variance, raw_min, raw_max, beta, floor, temperature,
                                                 window, elementwise, channels_last});
                         }));
  module.def("forward", torch::wrap_pybind_function_no_gil(&F::forward));
  module.def("backward", torch::wrap_pybind_function_no_gil(&F::backward));
  module.def("sample", torch::wrap_pybind_function_no_gil(&F::sample));
}

}  // namespace ladder_kernels
