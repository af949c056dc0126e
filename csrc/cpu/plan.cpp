#include "plan.h"

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "parallel.h"

extern "C" {

const char* ladder_version() { return LADDER_VERSION; }

const char* ladder_error(int) { return "there is not enough memory for partial sums or for the buffers of a thread"; }

std::int64_t ladder_forward_scratch(const LadderStep*) { return 0; }

std::int64_t ladder_backward_scratch(const LadderStep*) { return 0; }

}  // extern "C"

namespace ladder_kernels::cpu {
namespace {

// Enough units to share among threads, large enough that their partial sums cost nothing.
constexpr std::int64_t units_wanted = 32, unit_size = 16384, smallest_tile = 1024;

// A thread is worth waking for about ten microseconds of work.
constexpr std::int64_t elements_per_thread = 8192;

#if defined(LADDER_X86)
// What the CPU can do, but no more than torch's own variable allows.
const Kernels& fastest_kernels() {
  const char* const given = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view most = given != nullptr ? given : "";
  if (most == "default" || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return baseline_kernels;
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  return has_avx512 && most != "avx2" ? avx512_kernels : avx2_kernels;
}
#else
const Kernels& fastest_kernels() { return baseline_kernels; }
#endif

}  // namespace

const Kernels& kernels() {
  static const Kernels& fastest = fastest_kernels();
  return fastest;
}

namespace {

// A thread's buffers. It keeps them: of their size, half a megabyte, malloc asks the system anew every time.
struct Scratch {
  static constexpr std::size_t alignment = 64;
  void* const data = std::aligned_alloc(alignment, (kernels().scratch_size + alignment - 1) / alignment * alignment);

  ~Scratch() { std::free(data); }
};

template <class Call>
int run_units(void (*kernel)(const Call&, std::int64_t, std::int64_t, void*), const Call& call, std::int64_t units,
              LadderQueue threads) {
  const Grid& grid = call.step.grid;
  const std::int64_t elements = std::max<std::int64_t>(grid.batch * grid.rows * grid.columns / units, 1);
  std::atomic<int> code = done;
  share(units, elements_per_thread / elements + 1, threads, [&](std::int64_t begin, std::int64_t end) {
    static thread_local const Scratch scratch;
    scratch.data != nullptr ? kernel(call, begin, end, scratch.data) : void(code = no_memory);
  });
  return code;
}

}  // namespace

Grid grid_of(const LadderStep& step) {
  Grid grid{shape_of(step)};
  const std::int64_t wanted = grid.batch * grid.rows * grid.columns / units_wanted;
  const std::int64_t tile = std::clamp(wanted, smallest_tile, tile_size), unit = std::clamp(wanted, tile, unit_size);
  // Tiles of about equal width, whole vectors wide.
  const std::int64_t width = divide_up(grid.columns, divide_up(grid.columns, tile));
  grid.tile_columns = std::min(grid.columns, divide_up(width, 16) * 16);
  grid.tile_rows = std::min(grid.rows, std::max<std::int64_t>(tile / grid.tile_columns, 1));
  grid.unit_rows = std::min(grid.rows, divide_up(unit, grid.tile_rows * grid.tile_columns) * grid.tile_rows);
  grid.row_blocks = divide_up(grid.rows, grid.unit_rows);
  grid.column_blocks = divide_up(grid.columns, grid.tile_columns);
  return grid;
}

std::int64_t units_per_sample(const Grid& grid) { return grid.row_blocks * grid.column_blocks; }

Step step_of(const LadderStep& given, const void* q, const void* p, const void* source) {
  Step step{};
  step.grid = grid_of(given);
  step.q_mean = half_view(q, given.q, 0, step.grid);
  step.q_raw = half_view(q, given.q, 1, step.grid);
  step.p_mean = half_view(p, given.p, 0, step.grid);
  step.p_raw = half_view(p, given.p, 1, step.grid);
  step.draw = static_cast<Draw>(given.draw);
  step.kl = static_cast<KL>(given.kl);
  step.variance = variance_of(given);
  step.q_map = q_map_of(given);
  step.p_map = p_map_of(given);
  step.temperature = given.temperature;
  step.in_double = given.in_double;
  step.philox = given.philox;
  if (step.philox) {
    step.seed = static_cast<std::uint64_t>(*static_cast<const std::int64_t*>(source));
  } else {
    step.source = view_of(source, given.source, step.grid);
  }
  return step;
}

View view_of(const void* data, const LadderTensor& tensor, const Grid& grid) {
  View view;
  if (data == nullptr || tensor.dtype == 0) return view;
  view.data = const_cast<void*>(data);
  view.dtype = dtype_of(tensor);
  view.batch = tensor.strides[0];
  view.channel = tensor.strides[1];
  for (int i = 0; i < 3; ++i) view.space[i] = tensor.strides[2 + i];
  for (int i = 2; i >= 0; --i) {
    if (grid.space[i] == 1) continue;
    if (view.run == 1) view.step = view.space[i];
    if (view.space[i] != view.run * view.step) break;
    view.run *= grid.space[i];
  }
  return view;
}

View half_view(const void* data, const LadderTensor& packed, int half, const Grid& grid) {
  View view = view_of(data, packed, grid);
  if (view.data != nullptr) {
    view.data = static_cast<char*>(view.data) + half * grid.channels * view.channel * size_of(view.dtype);
  }
  return view;
}

int run(const Forward& call, std::int64_t units, LadderQueue threads) {
  return run_units(kernels().forward, call, units, threads);
}

int run(const Backward& call, std::int64_t units, LadderQueue threads) {
  return run_units(kernels().backward, call, units, threads);
}

}  // namespace ladder_kernels::cpu
