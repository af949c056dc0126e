// Autograd of the step, in C++: torch.autograd.Function costs the host more than a small step does.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>
#include <vector>

#include "op.h"

namespace ladder_kernels::autograd {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Whether the gradients' own gradients are wanted, or many of them at once.
inline bool want_plain_formula(const variable_list& grads) {
  if (at::GradMode::is_enabled()) return true;
  constexpr c10::DispatchKeySet transforms{c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched,
                                           c10::DispatchKey::FuncTorchGradWrapper};
  for (const at::Tensor& grad : grads) {
    if (grad.defined() && grad.key_set().has_any(transforms)) return true;
  }
  return false;
}

// As the op that ladder_kernels/ops.py registers computes it.
inline Gradients plain_backward(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source,
                                const c10::ivalue::Tuple& step, const Outputs& grads, Needs needs) {
  static const c10::OperatorHandle op =
      c10::Dispatcher::singleton().findSchemaOrThrow("ladder_kernels::plain_backward", "");
  std::vector<c10::IValue> stack{q, p, source};
  stack.insert(stack.end(), step.elements().begin(), step.elements().end());
  stack.insert(stack.end(), grads.begin(), grads.end());
  stack.insert(stack.end(), {needs.q, needs.p, needs.latent});
  // By its key: batched gradients would look for a batching rule of the op, and it needs none.
  op.callBoxedForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd, stack);
  return {stack[0].toOptional<at::Tensor>(), stack[1].toOptional<at::Tensor>(), stack[2].toOptional<at::Tensor>()};
}

template <BackwardOp* native_backward>
struct Differentiable : torch::autograd::Function<Differentiable<native_backward>> {
  // Leaves the outputs in `outputs`, and returns those that have gradients.
  template <class Run>
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q, const OptionalTensor& p,
                               const OptionalTensor& source, const StepArguments& step, const Run& run,
                               Outputs* outputs) {
    const at::Tensor none;
    ctx->save_for_backward({q, p.value_or(none), source.value_or(none)});
    ctx->set_materialize_grads(false);
    {
      const at::AutoDispatchBelowADInplaceOrView below;
      *outputs = run(q, p, source, step.options);
    }
    variable_list found;
    std::int64_t has_gradient = 0;  // a bit for each output
    for (std::size_t i = 0; i < outputs->size(); ++i) {
      if (i == qvar_max || !(*outputs)[i]) continue;
      found.push_back(*(*outputs)[i]);
      has_gradient |= std::int64_t{1} << i;
    }
    ctx->saved_data["step"] = step.given;
    ctx->saved_data["has_gradient"] = has_gradient;
    return found;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& found) {
    const auto optional = [](const at::Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; };
    const variable_list inputs = ctx->get_saved_variables();
    const auto step = ctx->saved_data["step"].toTuple();
    const std::int64_t has_gradient = ctx->saved_data["has_gradient"].toInt();
    Outputs grads;
    auto grad = found.begin();
    for (std::size_t i = 0; i < grads.size(); ++i) {
      if (has_gradient >> i & 1) grads[i] = materialized(optional(*grad++));
    }
    std::array<bool, 3> needs{};
    for (std::size_t i = 0, edge = 0; i < inputs.size(); ++i) {
      needs[i] = inputs[i].defined() && ctx->needs_input_grad(edge++);
    }
    const at::Tensor& q = inputs[0];
    const OptionalTensor p = optional(inputs[1]), source = optional(inputs[2]);
    const Options options = options_of(*step);
    const Gradients gradients =
        want_plain_formula(found)
            ? plain_backward(q, p, source, *step, grads, {needs[0], needs[1], needs[2]})
            : native_backward(q, p, source, options, named(grads), {needs[0], needs[1], needs[2]});

    variable_list results(6);  // of forward's arguments
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (gradients[i]) {
        results[i] = *gradients[i];
      } else if (needs[i]) {
        // Nothing arrives at it: zeros in the step's element order.
        const at::Tensor& like = inputs[i];
        results[i] =
            empty_dense(like, like.size(0), like.size(1), like.scalar_type(), options.channels_last).zero_();
      }
    }
    return results;
  }
};

}  // namespace ladder_kernels::autograd
