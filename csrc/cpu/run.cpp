#include "run.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>

#include "kernels.h"

namespace ladder_kernels::cpu {
namespace {

// A thread is worth waking for about ten microseconds of work.
constexpr std::int64_t elements_per_thread = 8192;

// torch's own choice, so that ATEN_CPU_CAPABILITY holds here as well.
const Kernels& kernels() {
#if defined(LADDER_X86)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return avx512_kernels;
  if (capability == "AVX2") return avx2_kernels;
#endif
  return baseline_kernels;
}

template <class Call>
void run_units(void (*kernel)(const Call&, std::int64_t, std::int64_t, void*), const Call& call, std::int64_t units) {
  if (units == 0) return;
  const Grid& grid = call.step.grid;
  const std::int64_t elements = grid.batch * grid.rows * grid.columns / units;
  at::parallel_for(0, units, elements_per_thread / std::max<std::int64_t>(elements, 1) + 1,
                   [&](std::int64_t begin, std::int64_t end) {
                     const at::DataPtr scratch = c10::GetCPUAllocator()->allocate(kernels().scratch_size);
                     kernel(call, begin, end, scratch.get());
                   });
}

}  // namespace

void run(const Forward& call, std::int64_t units) { run_units(kernels().forward, call, units); }

void run(const Backward& call, std::int64_t units) { run_units(kernels().backward, call, units); }

}  // namespace ladder_kernels::cpu
