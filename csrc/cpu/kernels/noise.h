// The numbers of torch.randn on a CPU: words of a Mersenne twister, and Box-Muller of their low 24 bits.
#pragma once

#include "../../math.h"

namespace ladder_kernels::cpu::LADDER_ISA {

LADDER_FN std::uint32_t twisted(std::uint32_t word, std::uint32_t next) {
  const std::uint32_t mixed = (word & 0x80000000u) | (next & 0x7fffffffu);
  return mixed >> 1 ^ (next & 1u) * 0x9908b0dfu;
}

// The next words of the recurrence in place of the last. Each depends on one made 227 words before: farther back than
// any vector is long.
static void twist(std::uint32_t* words) {
  constexpr int size = twister_size, ahead = 397, back = size - ahead;
#pragma omp simd
  for (int i = 0; i < back; ++i) words[i] = words[i + ahead] ^ twisted(words[i], words[i + 1]);
#pragma omp simd safelen(64)
  for (int i = back; i < size - 1; ++i) words[i] = words[i - back] ^ twisted(words[i], words[i + 1]);
  words[size - 1] = words[ahead - 1] ^ twisted(words[size - 1], words[0]);
}

// In [0, 1).
LADDER_FN float uniform_of(std::uint32_t word) {
  word ^= word >> 11;
  word ^= word << 7 & 0x9d2c5680u;
  word ^= word << 15 & 0xefc60000u;
  word ^= word >> 18;
  return static_cast<float>(static_cast<std::int32_t>(word & 0xffffffu)) * 0x1p-24f;
}

// Each 16 words, whose bits `data` holds, become as many normal numbers: word i and word i + 8 two of them. The product
// with 2 pi is rounded as ATen does, in float where it has AVX2 and in double elsewhere: that shows in the sixth digit.
template <class Angle>
static void normal(float* data, std::int64_t groups) {
  for (std::int64_t group = 0; group < groups; ++group, data += 16) {
#pragma omp simd
    for (int i = 0; i < 8; ++i) {
      const float u1 = 1.0f - uniform_of(math::bit_cast<std::uint32_t>(data[i]));
      const float u2 = uniform_of(math::bit_cast<std::uint32_t>(data[i + 8]));
      const float radius = math::sqrt(math::minus_two_log(u1));
      const math::SinCos<float> turn = math::sincos(static_cast<float>(Angle(6.283185307179586) * u2));
      data[i] = radius * turn.cos;
      data[i + 8] = radius * turn.sin;
    }
  }
}

}  // namespace ladder_kernels::cpu::LADDER_ISA
