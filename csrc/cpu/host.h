// From tensors to plans, and from plans to the kernels of this CPU.
#pragma once

#include "../op.h"
#include "plan.h"

namespace ladder_kernels::cpu {

// Raises for what does not fit.
Step step_of(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, const Options& options);

std::int64_t units_per_sample(const Grid& grid);

// A latent-shaped tensor (B, C, *S); its batch may be 1.
View view_of(const at::Tensor& latent, const Grid& grid);

// Half 0, means, or half 1, raw values, of packed parameters.
View half_view(const at::Tensor& packed, int half, const Grid& grid);

// The first `units` units, on torch's threads.
void run(const Forward& call, std::int64_t units);
void run(const Backward& call, std::int64_t units);

}  // namespace ladder_kernels::cpu
