// Standard normal noise of a seed: Philox4x32-10 and Box-Muller; ladder_kernels/noise.py has the reference and the
// paper. Element i of a latent, in memory order, is lane i % 4 of the block with key = seed and counter = i / 4.
#pragma once

#include "math.h"

namespace ladder_kernels {

// Four 32-bit words. `Word` may be wider: a loop over 64-bit lanes vectorises without repacking the products.
template <class Word>
struct PhiloxBlock {
  Word word0, word1, word2, word3;
};

template <int rounds, class Word>
LADDER_FN PhiloxBlock<Word> philox_rounds(PhiloxBlock<Word> c, std::uint32_t key0, std::uint32_t key1) {
  if constexpr (rounds == 0) {
    return c;
  } else {
    const std::uint64_t product0 = math::wide_product(0xD2511F53, static_cast<std::uint32_t>(c.word0));
    const std::uint64_t product1 = math::wide_product(0xCD9E8D57, static_cast<std::uint32_t>(c.word2));
    const PhiloxBlock<Word> next{static_cast<Word>(product1 >> 32) ^ c.word1 ^ key0,
                                 static_cast<std::uint32_t>(product1),
                                 static_cast<Word>(product0 >> 32) ^ c.word3 ^ key1,
                                 static_cast<std::uint32_t>(product0)};
    return philox_rounds<rounds - 1>(next, key0 + 0x9E3779B9u, key1 + 0xBB67AE85u);
  }
}

// The block of `counter` under `seed`. Known answer: seed 42, counter 0 gives 9ceaf053 77f5493b 12bf50ad 5742b3d7.
template <class Word>
LADDER_FN PhiloxBlock<Word> philox4x32(std::uint64_t counter, std::uint64_t seed) {
  const PhiloxBlock<Word> block{static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0};
  return philox_rounds<10>(block, static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
}

// (word + 1/2) / 2^32, never 0.
template <class T>
LADDER_FN T uniform(std::uint32_t word) {
  return static_cast<T>(word) * static_cast<T>(0x1p-32) + static_cast<T>(0x1p-33);
}

template <class T>
struct NormalPair {
  T first, second;
};

template <class T>
LADDER_FN NormalPair<T> box_muller(std::uint32_t word1, std::uint32_t word2) {
  // An approximate logarithm may be positive next to 1.
  const T radius = math::sqrt(math::maximum(math::minus_two_log(uniform<T>(word1)), T(0)));
  const math::SinCos<T> turn = math::sincos_turns(uniform<T>(word2));
  return {radius * turn.cos, radius * turn.sin};
}

}  // namespace ladder_kernels
