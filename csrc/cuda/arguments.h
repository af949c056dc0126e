// The arguments of the ops, checked, as the kernels want them.
#pragma once

#include "../checks.h"
#include "plan.h"

namespace ladder_kernels::cuda {

// Raises for what does not fit. Space is not collapsed yet.
Step step_of(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
             std::string_view kl, bool stable, std::optional<double> logvar_max, double temperature,
             bool channels_last);

Window window_of(at::IntArrayRef window, const Grid& grid);

// Whether the step is computed in float64: any of its tensors is.
bool in_double(const Step& step);

// Whether vector kernels are compiled for this step's options and dtypes.
bool is_hot(const Step& step);

}  // namespace ladder_kernels::cuda
