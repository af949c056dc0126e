// From tensors to grids and views.
#pragma once

#include <ATen/core/Tensor.h>

#include "plan.h"

namespace ladder_kernels::cpu {

// The grid of the latent that packed parameters q (B, 2C, *S) describe, its elements in the order of `channels_last`.
Grid grid_of(const at::Tensor& q, bool channels_last);

std::int64_t units_per_sample(const Grid& grid);

// A latent-shaped tensor (B, C, *S); its batch may be 1.
View view_of(const at::Tensor& latent, const Grid& grid);

// Half 0, means, or half 1, log-variances, of packed parameters.
View half_view(const at::Tensor& packed, int half, const Grid& grid);

}  // namespace ladder_kernels::cpu
