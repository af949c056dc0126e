// From a plan to a running kernel.
#pragma once

#include <type_traits>

#include "inputs.cuh"

namespace ladder_kernels::cuda {

template <class Kernel, class... Arguments>
void launch(Kernel kernel, std::int64_t blocks, int threads, cudaStream_t stream, const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(arguments...);
}

inline int threads_of(const Tiles& tiles) {
  const int threads = tiles.lanes * tiles.rows;
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

template <class F>
void with_flag(bool flag, F f) {
  flag ? f(std::true_type{}) : f(std::false_type{});
}

// with_variance for the kinds that take vectors (`is_hot`).
template <class F>
void with_hot_variance(Variance kind, F f) {
  with_variance(kind, [&](auto known) {
    if constexpr (decltype(known)::value != Variance::stable_without_floor) f(known);
  });
}

// f(path): of a call that takes vectors, without a KL.
template <class F>
void with_hot_path_without_kl(const Step& step, F f) {
  with_hot_variance(step.variance, [&](auto variance) {
    with_flag(step.seed != nullptr, [&](auto philox) {
      f(HotPath<KL::none, decltype(variance)::value, decltype(philox)::value, false>{});
    });
  });
}

// With one.
template <class F>
void with_hot_path(const Step& step, F f) {
  with_flag(step.kl == KL::analytic, [&](auto analytic) {
    with_hot_variance(step.variance, [&](auto variance) {
      with_flag(step.seed != nullptr, [&](auto philox) {
        with_flag(step.p.data != nullptr, [&](auto p) {
          constexpr KL kl = decltype(analytic)::value ? KL::analytic : KL::monte_carlo;
          f(HotPath<kl, decltype(variance)::value, decltype(philox)::value, decltype(p)::value>{});
        });
      });
    });
  });
}

}  // namespace ladder_kernels::cuda
