// The arguments of the ops, checked, as the kernels and `combine` want them.
#pragma once

#include "../checks.h"
#include "combine.h"

namespace ladder_kernels::cpu {

// Raises for what does not fit.
Step step_of(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
             std::string_view kl, bool stable, std::optional<double> logvar_max, double temperature,
             bool channels_last);

std::optional<Window> window_of(at::OptionalIntArrayRef window, const Grid& grid);

}  // namespace ladder_kernels::cpu
