// The kernels, put on a stream. Which variant serves is decided by `tiles.width`: 1 is that of single elements.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"

namespace ladder_kernels::cuda {

void launch_forward(const Forward& call, bool in_double, cudaStream_t stream);

// Adds up what `launch_forward` left in `call.partials`.
void launch_sums(const Forward& call, const Sums& out, bool in_double, cudaStream_t stream);

// p's gradient is summed over the batch if `shared_p`.
void launch_backward(const Backward& call, bool shared_p, bool in_double, cudaStream_t stream);

void launch_sample(const Sample& call, bool in_double, cudaStream_t stream);

}  // namespace ladder_kernels::cuda
