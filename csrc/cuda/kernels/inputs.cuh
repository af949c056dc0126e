// What every kernel reads: the parameters of q and p, and what z is made of.
#pragma once

#include <type_traits>

#include "../../philox.h"
#include "access.cuh"

namespace ladder_kernels::cuda {

// ---- The options of a step: known to the compiler on the hot path, looked up for each element elsewhere.

template <Draw draw_, KL kl_, Variance variance_>
struct Options {
  static constexpr Draw draw = draw_;
  static constexpr KL kl = kl_;
  static constexpr Variance variance = variance_;
};

// f(the step's options).
#pragma nv_exec_check_disable
template <class F>
LADDER_FN auto with_options(const Step& step, F f) {
  return with_variance(step.variance, [&](auto variance) {
    const auto with_kl = [&](auto draw) {
      switch (step.kl) {
        case KL::none: return f(Options<draw.value, KL::none, variance.value>{});
        case KL::monte_carlo: return f(Options<draw.value, KL::monte_carlo, variance.value>{});
        default: return f(Options<draw.value, KL::analytic, variance.value>{});
      }
    };
    switch (step.draw) {
      case Draw::noise: return with_kl(std::integral_constant<Draw, Draw::noise>{});
      case Draw::latent: return with_kl(std::integral_constant<Draw, Draw::latent>{});
      default: return with_kl(std::integral_constant<Draw, Draw::mode>{});
    }
  });
}

template <class Known, bool p>
struct HotPath {
  static constexpr bool may_have_p = p;
  static constexpr bool latent = Known::draw == Draw::latent, softplus = Known::variance == Variance::softplus;
  template <class Access>
  using Source = std::conditional_t<latent, typename Access::Columns, typename Access::FloatColumns>;

  __device__ static bool has_kl(const Step&) { return Known::kl != KL::none; }
  __device__ static bool has_seed(const Step& step) { return Known::draw == Draw::noise && step.seed != nullptr; }
  __device__ static bool has_source(const Step&) { return Known::draw != Draw::mode; }
  __device__ static bool has_p(const Step&) { return p; }

  template <class F>
  __device__ static auto with(const Step&, F f) {
    return f(Known{});
  }
};

struct AnyPath {
  static constexpr bool may_have_p = true, latent = true, softplus = false;
  template <class Access>
  using Source = typename Access::Columns;

  __device__ static bool has_kl(const Step& step) { return step.kl != KL::none; }
  __device__ static bool has_seed(const Step& step) { return step.seed != nullptr; }
  __device__ static bool has_source(const Step& step) { return step.source.data != nullptr; }
  __device__ static bool has_p(const Step& step) { return step.p.data != nullptr; }

  template <class F>
  __device__ static auto with(const Step& step, F f) {
    return with_options(step, f);
  }
};

// ---- The inputs.

// One element alone makes its own block and keeps one lane.
template <class T>
LADDER_FN T philox_normal(std::uint64_t seed, std::uint64_t element) {
  const auto words = philox4x32<std::uint32_t>(element / 4, seed);
  const bool second_pair = element & 2;
  const auto pair = second_pair ? box_muller<T>(words.word2, words.word3) : box_muller<T>(words.word0, words.word1);
  return element & 1 ? pair.second : pair.first;
}

// The normals of `seed` for the elements `first` and so on, in vectors `gap` apart. A vector begins a block of Philox,
// which makes four; an element alone keeps one of them.
template <class T, int width, int vector>
LADDER_FN Values<T, width> philox_normals(std::uint64_t seed, std::uint64_t first, int gap) {
  static_assert(vector == 1 || vector % 4 == 0, "whole blocks");
  Values<T, width> values;
#pragma unroll
  for (int i = 0; i < width; i += vector == 1 ? 1 : 4) {
    if constexpr (vector == 1) {
      values.at[i] = philox_normal<T>(seed, first + i * gap);
    } else {
      const auto words = philox4x32<std::uint32_t>((first + (i / vector * gap + i % vector)) / 4, seed);
      const auto pair0 = box_muller<T>(words.word0, words.word1), pair1 = box_muller<T>(words.word2, words.word3);
      values.at[i] = pair0.first;
      values.at[i + 1] = pair0.second;
      values.at[i + 2] = pair1.first;
      values.at[i + 3] = pair1.second;
    }
  }
  return values;
}

template <Variance kind, class T>
LADDER_FN Gaussian<kind, T> gaussian_of(T mean, T raw, VarianceMap<T> map) {
  return gaussian<kind>(mean, raw, exponential<kind>(raw, map), map);
}

// That of p; where the compiler knows that there is none, the constants of N(0, I).
template <class Path, Variance kind, class T>
LADDER_FN Gaussian<kind, T> prior_of(T mean, T raw, VarianceMap<T> map) {
  if constexpr (!Path::may_have_p) return {T(0), T(1), T(1), T(1), T(0), T(0), false, T(0), T(1), T(1)};
  return gaussian_of<kind>(mean, raw, map);
}

// Parameters of q or p, or their gradients.
template <class T, int width>
struct Packed {
  Values<T, width> mean, raw;
};

// A thread's columns of the inputs of one sample.
template <class Access, class Path>
struct Inputs {
  using T = typename Access::T;
  static constexpr int width = Access::width;

  const Step& step;
  const Parameters<T>& parameters;
  typename Access::Columns q_mean, q_raw, p_mean, p_raw;
  typename Path::template Source<Access> source;
  std::uint64_t seed;
  std::uint64_t element;  // index in z's memory of the first column, were it in row 0
  int gap;

  __device__ Inputs(const Step& step, const Place& place)
      : step(step),
        parameters(cuda::parameters(step, T())),
        q_mean(step.grid, step.q, place, 0),
        q_raw(step.grid, step.q, place, 1),
        p_mean(step.grid, step.p, place, 0),
        p_raw(step.grid, step.p, place, 1),
        source(step.grid, step.source, place),
        seed(Path::has_seed(step) ? static_cast<std::uint64_t>(*step.seed) : 0),
        element(pinned(std::uint64_t{1} * place.sample * step.grid.rows * step.grid.columns + place.column)),
        gap(place.gap) {}

  __device__ Packed<T, width> load_q(int row) const { return {q_mean.load(row), q_raw.load(row)}; }

  // Zeros without p: with its map, that is N(0, I).
  __device__ Packed<T, width> load_p(int row) const {
    if (!Path::has_p(step)) return {};
    return {p_mean.load(row), p_raw.load(row)};
  }

  // Noise or the given z; for the mode nothing.
  __device__ Values<T, width> load_source(int row) const {
    if (!Path::has_seed(step)) return Path::has_source(step) ? source.load(row) : Values<T, width>{};
    const std::uint64_t first = element + static_cast<std::int64_t>(row) * step.grid.columns;
    return philox_normals<T, width, Access::vector>(seed, first, gap);
  }
};

}  // namespace ladder_kernels::cuda
