// What a tile of either pass reads: the parameters of q and p, and what z is made of.
#pragma once

#include "../../philox.h"
#include "tile.h"

namespace ladder_kernels::cpu::LADDER_ISA {

// ---- The compile-time options of the loops over tiles.

template <class Type, Draw draw_, KL kl_, Variance variance_>
struct Options {
  using T = Type;
  static constexpr Draw draw = draw_;
  static constexpr KL kl = kl_;
  static constexpr Variance variance = variance_;
};

template <class T, Draw draw, KL kl, class F>
static void with_options(const Step& step, F f) {
  with_variance(step.variance, [&](auto variance) { f(Options<T, draw, kl, decltype(variance)::value>{}); });
}

template <class T, Draw draw, class F>
static void with_options(const Step& step, F f) {
  switch (step.kl) {
    case KL::none: return with_options<T, draw, KL::none>(step, f);
    case KL::monte_carlo: return with_options<T, draw, KL::monte_carlo>(step, f);
    case KL::analytic: return with_options<T, draw, KL::analytic>(step, f);
  }
}

template <class T, class F>
static void with_options(const Step& step, F f) {
  switch (step.draw) {
    case Draw::noise: return with_options<T, Draw::noise>(step, f);
    case Draw::latent: return with_options<T, Draw::latent>(step, f);
    case Draw::mode: return with_options<T, Draw::mode>(step, f);
  }
}

// f(Options): the options that the step asks for.
template <class F>
static void with_options(const Step& step, F f) {
  step.in_double ? with_options<double>(step, f) : with_options<float>(step, f);
}

// ---- The inputs of a tile.

// A tile need not begin or end with a Philox block of four.
constexpr std::int64_t noise_size = tile_size + 8;

template <class T>
struct alignas(64) InputBuffers {
  T q_mean[tile_size], q_raw[tile_size], q_exponential[tile_size];
  T p_mean[tile_size], p_raw[tile_size], p_exponential[tile_size];
  T source[noise_size];
};

template <class T>
struct Inputs {
  Rows<const T> q_mean, q_raw, q_exponential, p_mean, p_raw, p_exponential, source;
  VarianceMap<T> q_map, p_map;
  T temperature;
};

// A line of them. Plain pointers, which GCC vectorises loops over.
template <class T>
struct InputLine {
  const T *q_mean, *q_raw, *q_exponential, *p_mean, *p_raw, *p_exponential, *source;
  VarianceMap<T> q_map, p_map;
  T temperature;
};

template <class T>
LADDER_FN InputLine<T> line_of(const Tile& tile, const Inputs<T>& in, std::int64_t row) {
  prefetch(in.q_mean, tile, row);
  prefetch(in.p_mean, tile, row);
  prefetch(in.source, tile, row);
  return {in.q_mean[row],   in.q_raw[row],      in.q_exponential[row], in.p_mean[row],
          in.p_raw[row], in.p_exponential[row], in.source[row],        in.q_map,
          in.p_map,         in.temperature};
}

template <class T, class... Each>
static Lines lines_of(const Tile& tile, const Inputs<T>& in, const Each&... rows) {
  return lines_of(tile, in.q_mean, in.q_raw, in.p_mean, in.p_raw, in.source, rows...);
}

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

// Computed before anything that depends on them: the CPU would not find enough to do between an exponential and the
// logarithm that waits for it.
template <Variance kind, class T>
static Rows<const T> exponentials(Rows<const T> raw, const Tile& tile, VarianceMap<T> map, T* buffer) {
  const Lines lines = lines_of(tile, raw);
  for (std::int64_t line = 0; line < lines.count; ++line) {
    const T* const from = raw[line];
    T* const to = buffer + line * lines.length;
    prefetch(raw, tile, line);
#pragma omp simd
    for (std::int64_t i = 0; i < lines.length; ++i) to[i] = exponential<kind>(from[i], map);
  }
  return {buffer, tile.columns};
}

// What nothing depends on is not read.
template <class Options, class T = typename Options::T>
static Inputs<T> read_inputs(const Step& step, const Tile& tile, InputBuffers<T>& buffers) {
  const Rows<const T> unused{nullptr, tile.columns};
  Inputs<T> in{unused, unused, unused, unused, unused, unused, unused};
  in.temperature = static_cast<T>(step.temperature);
  in.q_map = cast<T>(step.q_map);
  in.q_mean = read(step.q_mean, step.grid, tile, buffers.q_mean);
  in.q_raw = read(step.q_raw, step.grid, tile, buffers.q_raw);
  in.q_exponential = exponentials<Options::variance>(in.q_raw, tile, in.q_map, buffers.q_exponential);
  if constexpr (Options::kl != KL::none) {
    in.p_map = cast<T>(step.p_map);
    in.p_mean = read(step.p_mean, step.grid, tile, buffers.p_mean);
    in.p_raw = read(step.p_raw, step.grid, tile, buffers.p_raw);
    in.p_exponential = exponentials<Options::variance>(in.p_raw, tile, in.p_map, buffers.p_exponential);
  }
  if constexpr (Options::draw != Draw::mode) {
    in.source = step.philox ? in_buffer(philox_noise(step.seed, first_element(step.grid, tile), size(tile),
                                                     buffers.source), tile)
                            : read(step.source, step.grid, tile, buffers.source);
  }
  return in;
}

template <class Options, class T>
LADDER_FN Gaussian<Options::variance, T> q_at(const InputLine<T>& in, std::int64_t i) {
  return gaussian<Options::variance>(in.q_mean[i], in.q_raw[i], in.q_exponential[i], in.q_map);
}

template <class Options, class T>
LADDER_FN Gaussian<Options::variance, T> p_at(const InputLine<T>& in, std::int64_t i) {
  if constexpr (Options::kl == KL::none) return {};
  return gaussian<Options::variance>(in.p_mean[i], in.p_raw[i], in.p_exponential[i], in.p_map);
}

template <class Options, class T>
LADDER_FN T source_at(const InputLine<T>& in, std::int64_t i) {
  if constexpr (Options::draw == Draw::mode) return T(0);
  return in.source[i];
}

}  // namespace ladder_kernels::cpu::LADDER_ISA
