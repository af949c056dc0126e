#include <cstring>

#include "parallel.h"
#include "plan.h"

namespace ladder_kernels::cpu {
namespace {

// A thread is worth waking for some ten microseconds of work.
constexpr std::int64_t groups_per_thread = 1024;

// The head of what torch.Generator.get_state() gives on a CPU.
struct Generator {
  std::uint64_t seed;
  std::int32_t left;  // words not yet taken of those below, and one
  std::int32_t seeded;
  std::uint64_t next;
  std::uint64_t words[twister_size];  // 32 bits of each
};

struct Twister {
  std::uint32_t words[twister_size];
  std::int64_t taken;

  // The next `count` words, untempered.
  void take(float* to, std::int64_t count) {
    while (count > 0) {
      if (taken == twister_size) {
        kernels().twist(words);
        taken = 0;
      }
      const std::int64_t some = std::min(count, twister_size - taken);
      std::memcpy(to, words + taken, static_cast<std::size_t>(some) * sizeof(float));
      to += some;
      count -= some;
      taken += some;
    }
  }
};

}  // namespace
}  // namespace ladder_kernels::cpu

using namespace ladder_kernels::cpu;

int ladder_normal(void* state, float* out, std::int64_t count, LadderQueue threads) {
  Generator generator;
  std::memcpy(&generator, state, sizeof(generator));
  // None is left after a seed, and then it does not matter which comes next.
  const std::int64_t left = generator.left - 1, taken = twister_size - left;
  const bool fits = left == 0 || generator.next == static_cast<std::uint64_t>(taken);
  if (left < 0 || taken <= 0 || !fits || count < 16) return 1;
  Twister twister;
  twister.taken = taken;
  std::copy(generator.words, generator.words + twister_size, twister.words);

  // Where the count is no multiple of 16, the last 16 are drawn anew.
  const std::int64_t last = count % 16 == 0 ? 0 : 16;
  float anew[16];
  twister.take(out, count);
  twister.take(anew, last);
  share(count / 16, groups_per_thread, threads,
        [&](std::int64_t begin, std::int64_t end) { kernels().normal(out + 16 * begin, end - begin); });
  kernels().normal(anew, last / 16);
  std::copy(anew, anew + last, out + count - last);

  std::copy(twister.words, twister.words + twister_size, generator.words);
  generator.next = static_cast<std::uint64_t>(twister.taken);
  generator.left = static_cast<std::int32_t>(twister_size - twister.taken + 1);
  std::memcpy(state, &generator, sizeof(generator));
  return 0;
}
