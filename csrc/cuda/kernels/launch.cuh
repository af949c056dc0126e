// From a plan to a running kernel.
#pragma once

#include "inputs.cuh"

namespace ladder_kernels::cuda {

template <class Kernel, class... Arguments>
void launch(Kernel kernel, std::int64_t blocks, int threads, cudaStream_t stream, const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(arguments...);
}

inline int threads_of(const Tiles& tiles) {
  const int threads = tiles.lanes.value * tiles.rows;
  return threads < warp_size ? warp_size : threads;
}

// f(access): how the tensors of this call are read and written.
template <class F>
void with_vectors(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::float16: return f(Vectors<__half>{});
    case Dtype::bfloat16: return f(Vectors<__nv_bfloat16>{});
    default: return f(Vectors<float>{});
  }
}

template <class F>
void with_singles(const Step& step, F f) {
  step.computed_in_double ? f(Singles<double>{}) : f(Singles<float>{});
}

// f(path): of a call that takes vectors.
template <class F>
void with_hot_path(const Step& step, F f) {
  with_options(step, [&](auto known) {
    using Known = decltype(known);
    if constexpr (is_hot(Known::variance)) {
      if constexpr (Known::kl != KL::none) {
        if (step.p.data != nullptr) return f(HotPath<Known, true>{});
      }
      f(HotPath<Known, false>{});
    }
  });
}

}  // namespace ladder_kernels::cuda
