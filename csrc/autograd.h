// Autograd for the ops of an extension, in C++: torch.autograd.Function costs the host more than a small step does.
//
// All of it is boxed. What follows an op's tensors is saved and handed on as it came, in the order of the schemas in
// module.h. Gradients of gradients are those of ladder_kernels::plain_backward, which ladder_kernels/ops.py registers.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <vector>

#include "op.h"

namespace ladder_kernels::autograd {

using c10::OperatorHandle;
using torch::autograd::variable_list;
using Stack = std::vector<c10::IValue>;

constexpr std::size_t output_count = 8, qvar_max = 6;  // of forward; sample has z alone

// The op backward of this extension.
inline std::optional<OperatorHandle> backward_op;

inline const OperatorHandle& plain_backward_op() {
  static const OperatorHandle op =
      c10::Dispatcher::singleton().findSchemaOrThrow("ladder_kernels::plain_backward", "");
  return op;
}

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

// An op with its arguments, of which the first `tensors` are q, p and source, or q and source.
struct Call {
  const OperatorHandle& op;
  c10::DispatchKeySet keys;
  Stack& stack;
  std::size_t tensors;

  OptionalTensor tensor(std::size_t i) const { return stack[i].toOptional<at::Tensor>(); }

  // Leaves the outputs on the stack, without gradients.
  void run() const {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys, &stack);
  }
};

struct Differentiable : torch::autograd::Function<Differentiable> {
  // Leaves the outputs on the call's stack and returns those that have gradients.
  static variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& q, const OptionalTensor& p,
                               const OptionalTensor& source, const Call& call) {
    const at::Tensor none;
    ctx->save_for_backward({q, p.value_or(none), source.value_or(none)});
    ctx->set_materialize_grads(false);
    Stack& stack = call.stack;
    ctx->saved_data["step"] = c10::ivalue::Tuple::create(Stack(stack.begin() + call.tensors, stack.end()));
    call.run();
    variable_list outputs;
    std::int64_t has_gradient = 0;  // a bit for each output
    for (std::size_t i = 0; i < stack.size(); ++i) {
      if (i == qvar_max || !stack[i].isTensor()) continue;
      outputs.push_back(stack[i].toTensor());
      has_gradient |= std::int64_t{1} << i;
    }
    ctx->saved_data["has_gradient"] = has_gradient;
    return outputs;
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, const variable_list& grads) {
    const variable_list inputs = ctx->get_saved_variables();
    const auto step = ctx->saved_data["step"].toTuple();
    const std::int64_t has_gradient = ctx->saved_data["has_gradient"].toInt();
    const auto value_of = [](const at::Tensor& tensor) { return tensor.defined() ? c10::IValue(tensor) : c10::IValue(); };

    Stack stack;
    for (const at::Tensor& input : inputs) stack.push_back(value_of(input));
    stack.insert(stack.end(), step->elements().begin(), step->elements().end());
    auto grad = grads.begin();
    for (std::size_t i = 0; i < output_count; ++i) {
      stack.push_back(has_gradient >> i & 1 ? value_of(*grad++) : c10::IValue());
    }
    std::array<bool, 3> needs{};
    for (std::size_t i = 0, edge = 0; i < inputs.size(); ++i) {
      needs[i] = inputs[i].defined() && ctx->needs_input_grad(edge++);
      stack.emplace_back(needs[i]);
    }
    if (want_plain_formula(grads)) {
      // By its key: batched gradients would look for a batching rule of the op, and it needs none.
      plain_backward_op().callBoxedForDispatchKey(c10::DispatchKey::AutogradCPU, stack);
    } else {
      backward_op->callBoxed(stack);
    }

    variable_list found(4);  // of forward's arguments
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (stack[i].isTensor()) {
        found[i] = stack[i].toTensor();
      } else if (needs[i]) {
        // Nothing arrives at it: zeros in the step's element order.
        const bool channels_last = step->elements().back().toBool();
        const at::Tensor& like = inputs[i];
        found[i] = empty_dense(like, like.size(0), like.size(1), like.scalar_type(), channels_last).zero_();
      }
    }
    return found;
  }
};

inline void run(const Call& call) {
  bool has_gradient = false;
  for (std::size_t i = 0; i < call.tensors; ++i) {
    const OptionalTensor tensor = call.tensor(i);
    has_gradient = has_gradient || (tensor && tensor->requires_grad());
  }
  if (!has_gradient || !at::GradMode::is_enabled()) return call.run();

  const OptionalTensor q = call.tensor(0), p = call.tensors == 3 ? call.tensor(1) : std::nullopt;
  const variable_list outputs = Differentiable::apply(*q, p, call.tensor(call.tensors - 1), call);
  auto output = outputs.begin();
  for (std::size_t i = 0; i < call.stack.size(); ++i) {
    if (i != qvar_max && call.stack[i].isTensor()) call.stack[i] = *output++;
  }
}

// What runs above the kernels of an op, for each of its calls.
struct Kernel : c10::OperatorKernel {
  explicit Kernel(std::size_t tensors) : tensors(tensors) {}

  void operator()(const OperatorHandle& op, c10::DispatchKeySet keys, Stack* outer) const {
    const auto begin = outer->end() - static_cast<std::ptrdiff_t>(op.schema().arguments().size());
    Stack stack(std::make_move_iterator(begin), std::make_move_iterator(outer->end()));
    outer->erase(begin, outer->end());
    run({op, keys & c10::after_autograd_keyset, stack, tensors});
    outer->insert(outer->end(), std::make_move_iterator(stack.begin()), std::make_move_iterator(stack.end()));
  }

  std::size_t tensors;
};

// The autograd kernel of an op that begins with so many tensors.
inline torch::CppFunction kernel(std::size_t tensors) {
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Kernel>(tensors));
}

}  // namespace ladder_kernels::autograd
