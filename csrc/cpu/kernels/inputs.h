// What a tile of either pass reads: the parameters of q and p, and what z is made of.
#pragma once

#include "../../philox.h"
#include "unit.h"

namespace ladder_kernels::cpu::LADDER_ISA {

// A tile need not begin or end with a Philox block of four.
constexpr std::int64_t noise_size = tile_size + 8;

template <class T>
struct alignas(64) InputBuffers {
  T q_mean[tile_size], q_logvar[tile_size], p_mean[tile_size], p_logvar[tile_size], source[noise_size];
};

template <class T>
struct Inputs {
  const T *q_mean, *q_logvar, *p_mean, *p_logvar, *source;
  VarianceMap<T> q_map, p_map;
  T temperature;
};

// The normals [first, first + count) of a seed; they begin somewhere in the first block of `buffer`.
template <class T>
static const T* philox_noise(std::uint64_t seed, std::int64_t first, std::int64_t count, T* buffer) {
  alignas(64) std::uint32_t words[noise_size];
  const std::int64_t lead = first % 4, blocks = (lead + count + 3) / 4;
#pragma omp simd
  for (std::int64_t i = 0; i < blocks; ++i) {
    const PhiloxBlock<std::uint64_t> block = philox4x32<std::uint64_t>(first / 4 + i, seed);
    words[4 * i] = static_cast<std::uint32_t>(block.word0);
    words[4 * i + 1] = static_cast<std::uint32_t>(block.word1);
    words[4 * i + 2] = static_cast<std::uint32_t>(block.word2);
    words[4 * i + 3] = static_cast<std::uint32_t>(block.word3);
  }
#pragma omp simd
  for (std::int64_t i = 0; i < 2 * blocks; ++i) {
    const NormalPair<T> pair = box_muller<T>(words[2 * i], words[2 * i + 1]);
    buffer[2 * i] = pair.first;
    buffer[2 * i + 1] = pair.second;
  }
  return buffer + lead;
}

template <class Options, class T = typename Options::T>
static Inputs<T> read_inputs(const Step& step, const Tile& tile, InputBuffers<T>& buffers) {
  // What nothing depends on is not touched.
  constexpr bool has_kl = Options::kl != KL::none, has_source = Options::draw != Draw::mode;
  const VarianceMap<double>&q = step.q_map, &p = step.p_map;
  return {
      read(step.q_mean, step.grid, tile, buffers.q_mean),
      read(step.q_logvar, step.grid, tile, buffers.q_logvar),
      read(has_kl ? step.p_mean : View{}, step.grid, tile, buffers.p_mean),
      read(has_kl ? step.p_logvar : View{}, step.grid, tile, buffers.p_logvar),
      has_source && step.philox ? philox_noise(step.seed, first_element(step.grid, tile), size(tile), buffers.source)
                                : read(has_source ? step.source : View{}, step.grid, tile, buffers.source),
      {static_cast<T>(q.logvar_max), static_cast<T>(q.floor)},
      {static_cast<T>(p.logvar_max), static_cast<T>(p.floor)},
      static_cast<T>(step.temperature),
  };
}

}  // namespace ladder_kernels::cpu::LADDER_ISA
