// What every kernel reads: the parameters of q and p, and what z is made of.
#pragma once

#include "../philox.h"
#include "access.cuh"

namespace ladder_kernels::cuda {

// The normals of `seed` for the elements from `first`: four to a Philox block, and `first` begins one.
template <class T, int width>
LADDER_FN Values<T, width> philox_normals(std::uint64_t seed, std::int64_t first) {
  static_assert(width % 4 == 0, "whole blocks");
  Values<T, width> values;
#pragma unroll
  for (int i = 0; i < width; i += 4) {
    const auto words = philox4x32<std::uint32_t>((first + i) / 4, seed);
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
LADDER_FN T philox_normal(std::uint64_t seed, std::int64_t element) {
  const auto words = philox4x32<std::uint32_t>(element / 4, seed);
  const bool second_pair = element & 2;
  const auto pair = second_pair ? box_muller<T>(words.word2, words.word3) : box_muller<T>(words.word0, words.word1);
  return element & 1 ? pair.second : pair.first;
}

// A thread's view of the inputs: its columns of one sample.
template <class Access, class Path>
struct Inputs {
  using T = typename Access::T;
  using Row = Values<T, Access::width>;
  static constexpr int width = Access::width;

  const Step& step;
  typename Access::Columns q_mean, q_logvar, p_mean, p_logvar;
  typename Access::FloatColumns source;
  VarianceMap<T> q_map, p_map;
  T temperature;
  std::uint64_t seed;
  std::int64_t element;  // index of the first column in z's memory, less its row's

  __device__ Inputs(const Step& step, std::int64_t sample, int column)
      : step(step),
        q_mean(step.grid, step.q, sample, column, 0),
        q_logvar(step.grid, step.q, sample, column, 1),
        p_mean(step.grid, step.p, sample, column, 0),
        p_logvar(step.grid, step.p, sample, column, 1),
        source(step.grid, step.source, sample, column),
        q_map{static_cast<T>(step.q_map.logvar_max), static_cast<T>(step.q_map.floor)},
        p_map{static_cast<T>(step.p_map.logvar_max), static_cast<T>(step.p_map.floor)},
        temperature(static_cast<T>(step.temperature)),
        seed(Path::has_philox(step) ? static_cast<std::uint64_t>(*step.seed) : 0),
        element(sample * step.grid.rows * step.grid.columns + column) {}

  // Noise, or the given z.
  __device__ Row load_source(int row) const {
    if (!Path::has_philox(step)) return source.load(row);
    const std::int64_t first = element + static_cast<std::int64_t>(row) * step.grid.columns;
    if constexpr (width == 1) {
      return {philox_normal<T>(seed, first)};
    } else {
      return philox_normals<T, width>(seed, first);
    }
  }
};

}  // namespace ladder_kernels::cuda
