// A Python extension module whose import registers the ops forward, backward and sample of one device.
#pragma once

#include <Python.h>
#include <torch/library.h>
#include <torch/version.h>

#include <cstdio>
#include <initializer_list>

#include "autograd.h"
#include "op.h"

namespace ladder_kernels {

// In the order of Step in ladder_kernels/backends/step.py, the variance map field by field.
#define LADDER_STEP_SCHEMA                                                                                        \
  "str draw, str kl, str variance, float? raw_min, float? raw_max, float beta, float floor, float temperature, " \
  "int[]? window, bool elementwise, bool channels_last"

constexpr const char* forward_schema =
    "forward(Tensor q, Tensor? p, Tensor? source, " LADDER_STEP_SCHEMA
    ") -> (Tensor? z, Tensor? kl_samplewise, Tensor? kl_samplewise_restricted, Tensor? kl_channelwise, "
    "Tensor? kl_spatial, Tensor logprob_q, Tensor qvar_max, Tensor? kl_elementwise)";

constexpr const char* backward_schema =
    "backward(Tensor q, Tensor? p, Tensor? source, " LADDER_STEP_SCHEMA
    ", Tensor? grad_z, Tensor? grad_samplewise, Tensor? grad_restricted, Tensor? grad_channelwise, "
    "Tensor? grad_spatial, Tensor? grad_logprob_q, Tensor? grad_qvar_max, Tensor? grad_elementwise, "
    "bool needs_q, bool needs_p, bool needs_latent) -> (Tensor? q, Tensor? p, Tensor? latent)";

constexpr const char* sample_schema = "sample(Tensor q, Tensor? source, " LADDER_STEP_SCHEMA ") -> Tensor z";

#undef LADDER_STEP_SCHEMA

// False, with ImportError set, if torch is not the one that this file is compiled against.
inline bool check_torch_version() {
  PyObject* const torch = PyImport_ImportModule("torch");
  if (torch == nullptr) return false;
  PyObject* const version = PyObject_GetAttrString(torch, "__version__");
  Py_DECREF(torch);
  if (version == nullptr) return false;
  PyObject* const text = PyObject_Str(version);
  Py_DECREF(version);
  if (text == nullptr) return false;
  int major = 0, minor = 0;
  std::sscanf(PyUnicode_AsUTF8(text), "%d.%d", &major, &minor);
  const bool same = major == TORCH_VERSION_MAJOR && minor == TORCH_VERSION_MINOR;
  if (!same) {
    PyErr_Format(PyExc_ImportError, "built for torch %s, this is torch %U", TORCH_VERSION, text);
  }
  Py_DECREF(text);
  return same;
}

inline Options options_of(std::string_view draw, std::string_view kl, std::string_view variance,
                          std::optional<double> raw_min, std::optional<double> raw_max, double beta, double floor,
                          double temperature, at::OptionalIntArrayRef window, bool elementwise, bool channels_last) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const VarianceMap<double> map{raw_min.value_or(-infinity), raw_max.value_or(infinity), 2 * beta, 1 / beta, floor};
  return {draw_named(draw), draw == "seed", kl_named(kl), variance_named(variance), map, temperature, window,
          elementwise, channels_last};
}

// The ops as the dispatcher calls them, argument by argument.
template <ForwardOp* op>
Outputs forward_op(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
                   std::string_view kl, std::string_view variance, std::optional<double> raw_min,
                   std::optional<double> raw_max, double beta, double floor, double temperature,
                   at::OptionalIntArrayRef window, bool elementwise, bool channels_last) {
  return op(q, p, source,
            options_of(draw, kl, variance, raw_min, raw_max, beta, floor, temperature, window, elementwise,
                       channels_last));
}

template <SampleOp* op>
at::Tensor sample_op(const at::Tensor& q, const OptionalTensor& source, std::string_view draw, std::string_view kl,
                     std::string_view variance, std::optional<double> raw_min, std::optional<double> raw_max,
                     double beta, double floor, double temperature, at::OptionalIntArrayRef window, bool elementwise,
                     bool channels_last) {
  Options options =
      options_of(draw, kl, variance, raw_min, raw_max, beta, floor, temperature, window, elementwise, channels_last);
  options.kl = KL::none;
  return op(q, source, options);
}

template <BackwardOp* op>
Gradients backward_op(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source,
                      std::string_view draw, std::string_view kl, std::string_view variance,
                      std::optional<double> raw_min, std::optional<double> raw_max, double beta, double floor,
                      double temperature, at::OptionalIntArrayRef window, bool elementwise, bool channels_last,
                      const OptionalTensor& grad_z, const OptionalTensor& grad_samplewise,
                      const OptionalTensor& grad_restricted, const OptionalTensor& grad_channelwise,
                      const OptionalTensor& grad_spatial, const OptionalTensor& grad_logprob_q,
                      const OptionalTensor& /*grad_qvar_max*/, const OptionalTensor& grad_elementwise, bool needs_q,
                      bool needs_p, bool needs_latent) {
  return op(q, p, source,
            options_of(draw, kl, variance, raw_min, raw_max, beta, floor, temperature, window, elementwise,
                       channels_last),
            {grad_z, grad_samplewise, grad_restricted, grad_channelwise, grad_spatial, grad_logprob_q,
             grad_elementwise},
            {needs_q, needs_p, needs_latent});
}

// Not TORCH_LIBRARY, which would call torch while the file is loaded, before its version is known.
template <ForwardOp* forward, BackwardOp* backward, SampleOp* sample>
void register_ops(const char* name, std::initializer_list<c10::DispatchKey> keys) {
  static torch::Library library(torch::Library::DEF, name, std::nullopt, __FILE__, __LINE__);
  library.def(forward_schema);
  library.def(backward_schema);
  library.def(sample_schema);
  autograd::backward_op = c10::Dispatcher::singleton().findSchemaOrThrow((std::string(name) + "::backward").c_str(), "");
  for (const c10::DispatchKey key : keys) {
    library.impl("forward", torch::dispatch(key, forward_op<forward>));
    library.impl("backward", torch::dispatch(key, backward_op<backward>));
    library.impl("sample", torch::dispatch(key, sample_op<sample>));
    const bool on_cpu = key == c10::DispatchKey::CPU;
    const c10::DispatchKey above = on_cpu ? c10::DispatchKey::AutogradCPU : c10::DispatchKey::AutogradCUDA;
    library.impl("forward", torch::dispatch(above, autograd::kernel(3)));
    library.impl("sample", torch::dispatch(above, autograd::kernel(2)));
  }
}

// What PyInit_<name> returns; the ops are registered as `library`::*, for the devices of `keys`.
template <ForwardOp* forward, BackwardOp* backward, SampleOp* sample>
PyObject* make_module(const char* name, const char* library, std::initializer_list<c10::DispatchKey> keys) {
  if (!check_torch_version()) return nullptr;
  try {
    register_ops<forward, backward, sample>(library, keys);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ImportError, error.what());
    return nullptr;
  }
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, name, nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}

}  // namespace ladder_kernels
