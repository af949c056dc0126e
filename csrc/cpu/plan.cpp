#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/CPUAllocator.h>

#include "host.h"

namespace ladder_kernels::cpu {
namespace {

// Enough units to share among threads, large enough that their partial sums cost nothing.
constexpr std::int64_t units_wanted = 32, unit_size = 16384, smallest_tile = 1024;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return b == 0 ? 0 : (a + b - 1) / b; }

// The grid of the latent that packed parameters q (B, 2C, *S) describe, its elements in the order of `channels_last`.
Grid grid_of(const at::Tensor& q, bool channels_last) {
  Grid grid{shape_of(q, channels_last)};
  if (grid.rows == 0 || grid.columns == 0) return grid;

  const std::int64_t share = grid.batch * grid.rows * grid.columns / units_wanted;
  const std::int64_t tile = std::clamp(share, smallest_tile, tile_size), unit = std::clamp(share, tile, unit_size);
  // Tiles of about equal width, whole vectors wide.
  const std::int64_t width = divide_up(grid.columns, divide_up(grid.columns, tile));
  grid.tile_columns = std::min(grid.columns, divide_up(width, 16) * 16);
  grid.tile_rows = std::min(grid.rows, std::max<std::int64_t>(tile / grid.tile_columns, 1));
  grid.unit_rows = std::min(grid.rows, divide_up(unit, grid.tile_rows * grid.tile_columns) * grid.tile_rows);
  grid.row_blocks = divide_up(grid.rows, grid.unit_rows);
  grid.column_blocks = divide_up(grid.columns, grid.tile_columns);
  return grid;
}

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
                     // Kept: of its size, half a megabyte, the allocator asks the system anew every time.
                     static thread_local const at::DataPtr scratch =
                         c10::GetCPUAllocator()->allocate(kernels().scratch_size);
                     kernel(call, begin, end, scratch.get());
                   });
}

}  // namespace

Step step_of(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, const Options& options) {
  check_inputs(q, p, source, options, at::kCPU);
  Step step{};
  step.grid = grid_of(q, options.channels_last);
  step.q_mean = half_view(q, 0, step.grid);
  step.q_raw = half_view(q, 1, step.grid);
  if (p) {
    step.p_mean = half_view(*p, 0, step.grid);
    step.p_raw = half_view(*p, 1, step.grid);
  }
  step.draw = options.draw;
  step.kl = options.kl;
  step.variance = options.variance;
  step.q_map = options.map;
  step.p_map = p ? options.map : unit_map(options.variance);
  step.temperature = options.temperature;
  if (options.window) check_window(*options.window, step.grid.space[1], step.grid.space[2]);
  step.in_double = computed_in_double(q, p, source);
  step.philox = options.philox;
  if (step.philox) {
    step.seed = static_cast<std::uint64_t>(*source->const_data_ptr<std::int64_t>());
  } else if (step.draw != Draw::mode) {
    step.source = view_of(*source, step.grid);
  }
  return step;
}

std::int64_t units_per_sample(const Grid& grid) { return grid.row_blocks * grid.column_blocks; }

View view_of(const at::Tensor& latent, const Grid& grid) {
  View view;
  view.data = latent.data_ptr();
  view.dtype = dtype_of(latent);
  view.batch = latent.size(0) == 1 ? 0 : latent.stride(0);
  view.channel = latent.stride(1);
  const std::int64_t missing = 5 - latent.dim();
  for (std::int64_t i = missing; i < 3; ++i) view.space[i] = latent.stride(i + 2 - missing);
  for (std::int64_t i = 2; i >= 0; --i) {
    if (grid.space[i] == 1) continue;
    if (view.run == 1) view.step = view.space[i];
    if (view.space[i] != view.run * view.step) break;
    view.run *= grid.space[i];
  }
  return view;
}

View half_view(const at::Tensor& packed, int half, const Grid& grid) {
  View view = view_of(packed, grid);
  view.data = static_cast<char*>(view.data) + half * grid.channels * view.channel * packed.element_size();
  return view;
}

void run(const Forward& call, std::int64_t units) { run_units(kernels().forward, call, units); }

void run(const Backward& call, std::int64_t units) { run_units(kernels().backward, call, units); }

}  // namespace ladder_kernels::cpu
