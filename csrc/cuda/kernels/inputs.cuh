// What every kernel reads: the parameters of q and p, and what z is made of.
#pragma once

#include "../../philox.h"
#include "access.cuh"

namespace ladder_kernels::cuda {

// The normals of `seed`, four to a Philox block; every vector, from `first` on `gap` apart, begins a block.
template <class T, int width, int vector>
LADDER_FN Values<T, width> philox_normals(std::uint64_t seed, std::uint64_t first, int gap) {
  static_assert(vector % 4 == 0, "whole blocks");
  Values<T, width> values;
#pragma unroll
  for (int i = 0; i < width; i += 4) {
    const auto words = philox4x32<std::uint32_t>((first + (i / vector * gap + i % vector)) / 4, seed);
    const auto pair0 = box_muller<T>(words.word0, words.word1), pair1 = box_muller<T>(words.word2, words.word3);
    values.at[i] = pair0.first;
    values.at[i + 1] = pair0.second;
    values.at[i + 2] = pair1.first;
    values.at[i + 3] = pair1.second;
  }
  return values;
}

// One element alone makes its own block and keeps one lane.
template <class T>
LADDER_FN T philox_normal(std::uint64_t seed, std::uint64_t element) {
  const auto words = philox4x32<std::uint32_t>(element / 4, seed);
  const bool second_pair = element & 2;
  const auto pair = second_pair ? box_muller<T>(words.word2, words.word3) : box_muller<T>(words.word0, words.word1);
  return element & 1 ? pair.second : pair.first;
}

template <bool stable, class T>
LADDER_FN Gaussian<T> gaussian_of(T mean, T raw_logvar, VarianceMap<T> map) {
  return gaussian<stable>(mean, raw_logvar, exponential<stable>(raw_logvar, map), map);
}

template <class T, int width>
struct Raw {
  Values<T, width> mean, logvar;
};

// A thread's columns of the inputs of one sample.
template <class Access, class Path>
struct Inputs {
  using T = typename Access::T;
  static constexpr int width = Access::width;

  const Step& step;
  const Parameters<T>& parameters;
  typename Access::Columns q_mean, q_logvar, p_mean, p_logvar;
  typename Access::FloatColumns source;
  std::uint64_t seed;
  std::uint64_t element;  // index in z's memory of the first column, were it in row 0
  int gap;

  __device__ Inputs(const Step& step, const Place& place)
      : step(step),
        parameters(cuda::parameters(step, T())),
        q_mean(step.grid, step.q, place, 0),
        q_logvar(step.grid, step.q, place, 1),
        p_mean(step.grid, step.p, place, 0),
        p_logvar(step.grid, step.p, place, 1),
        source(step.grid, step.source, place),
        seed(Path::has_philox(step) ? static_cast<std::uint64_t>(*step.seed) : 0),
        element(pinned(place.sample * step.grid.rows * step.grid.columns + place.column)),
        gap(place.gap) {}

  __device__ Raw<T, width> load_q(int row) const { return {q_mean.load(row), q_logvar.load(row)}; }

  // Zeros without p: with its map, that is N(0, I).
  __device__ Raw<T, width> load_p(int row) const {
    if (!Path::has_p(step)) return {};
    return {p_mean.load(row), p_logvar.load(row)};
  }

  // Noise or the given z; for the mode nothing.
  __device__ Values<T, width> load_source(int row) const {
    if (!Path::has_philox(step)) return step.source.data == nullptr ? Values<T, width>{} : source.load(row);
    const std::uint64_t first = element + static_cast<std::int64_t>(row) * step.grid.columns;
    if constexpr (width == 1) {
      return {philox_normal<T>(seed, first)};
    } else {
      return philox_normals<T, width, Access::vector>(seed, first, gap);
    }
  }
};

}  // namespace ladder_kernels::cuda
