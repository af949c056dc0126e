// The options of a step inside a kernel: known to the compiler on the hot path, looked up for each element elsewhere.
#pragma once

#include "../plan.h"

namespace ladder_kernels::cuda {

template <Draw draw_, KL kl_, bool stable_>
struct Options {
  static constexpr Draw draw = draw_;
  static constexpr KL kl = kl_;
  static constexpr bool stable = stable_;
};

// Noise.
template <KL kl, bool stable, bool philox, bool p>
struct HotPath {
  static constexpr bool may_be_given = false;

  __device__ static bool has_kl(const Step&) { return kl != KL::none; }
  __device__ static bool has_philox(const Step&) { return philox; }
  __device__ static bool has_p(const Step&) { return p; }

  template <class F>
  __device__ static auto with(const Step&, F f) {
    return f(Options<Draw::noise, kl, stable>{});
  }
};

struct AnyPath {
  static constexpr bool may_be_given = true;  // the latent

  __device__ static bool has_kl(const Step& step) { return step.kl != KL::none; }
  __device__ static bool has_philox(const Step& step) { return step.seed != nullptr; }
  __device__ static bool has_p(const Step& step) { return step.p.data != nullptr; }

  template <class F>
  __device__ static auto with(const Step& step, F f) {
    switch (step.draw) {
      case Draw::noise: return with_kl<Draw::noise>(step, f);
      case Draw::latent: return with_kl<Draw::latent>(step, f);
      default: return with_kl<Draw::mode>(step, f);
    }
  }

 private:
  template <Draw draw, class F>
  __device__ static auto with_kl(const Step& step, F f) {
    switch (step.kl) {
      case KL::none: return with_map<draw, KL::none>(step, f);
      case KL::monte_carlo: return with_map<draw, KL::monte_carlo>(step, f);
      default: return with_map<draw, KL::analytic>(step, f);
    }
  }

  template <Draw draw, KL kl, class F>
  __device__ static auto with_map(const Step& step, F f) {
    return step.stable ? f(Options<draw, kl, true>{}) : f(Options<draw, kl, false>{});
  }
};

}  // namespace ladder_kernels::cuda
