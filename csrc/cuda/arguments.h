// The arguments of the ops, checked, as the kernels want them.
#pragma once

#include "plan.h"
#include "step.h"

namespace ladder_kernels::cuda {

// Raises for tensors that do not fit. The KL is the one that `analytical` names; space is not collapsed yet.
Step step_of(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
             bool analytical, bool stable, std::optional<double> logvar_max, double temperature);

Window window_of(at::IntArrayRef window, const Grid& grid);

// Raises unless `grad`, if there is one, has this shape; in `dtype`.
OptionalTensor checked_grad(const OptionalTensor& grad, const char* name, at::IntArrayRef shape, at::ScalarType dtype,
                            const at::Tensor& q);

// Whether the step is computed in float64: any of its tensors is.
bool in_double(const Step& step);

// Whether vector kernels are compiled for this step's options and dtypes.
bool is_hot(const Step& step);

}  // namespace ladder_kernels::cuda
