#include "combine.h"

#include <ATen/Parallel.h>

#include "geometry.h"

namespace ladder_kernels::cpu {
namespace {

// A thread is worth waking for some ten microseconds of work.
constexpr std::int64_t sums_per_thread = 131072;

constexpr double half_log_two_pi = 0.918938533204672742;

// Adds up blocks of `count` values into the first of them.
double* add_blocks(double* blocks, std::int64_t block_count, std::int64_t count) {
  for (std::int64_t block = 1; block < block_count; ++block) {
    for (std::int64_t i = 0; i < count; ++i) blocks[i] += blocks[block * count + i];
  }
  return blocks;
}

double sum(const double* values, std::int64_t count) {
  double total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += values[i];
  return total;
}

double sum_window(const double* by_position, const Grid& grid, const Window& window) {
  double total = 0;
  for (std::int64_t plane = 0; plane < grid.space[0]; ++plane) {
    for (std::int64_t y = window[0]; y < window[1]; ++y) {
      const std::int64_t row = (plane * grid.space[1] + y) * grid.space[2];
      total += sum(by_position + row + window[2], window[3] - window[2]);
    }
  }
  return total;
}

template <class T>
void combine_kl(const Forward& call, const std::optional<Window>& window, const Sums<T>& out, std::int64_t sample) {
  const Grid& grid = call.step.grid;
  const double* const by_row =
      add_blocks(call.row_sums + sample * grid.column_blocks * grid.rows, grid.column_blocks, grid.rows);
  const double* const by_column =
      add_blocks(call.column_sums + sample * grid.row_blocks * grid.columns, grid.row_blocks, grid.columns);
  const double* const by_channel = grid.channels_inner ? by_column : by_row;
  const double* const by_position = grid.channels_inner ? by_row : by_column;

  for (std::int64_t i = 0; i < grid.channels; ++i) {
    out.channelwise[sample * grid.channels + i] = static_cast<T>(by_channel[i]);
  }
  for (std::int64_t i = 0; i < grid.positions; ++i) {
    out.spatial[sample * grid.positions + i] = static_cast<T>(by_position[i]);
  }
  out.samplewise[sample] = static_cast<T>(sum(by_channel, grid.channels));
  if (window) out.restricted[sample] = static_cast<T>(sum_window(by_position, grid, *window));
}

template <class T>
void combine_log_q(const Forward& call, const Sums<T>& out, std::int64_t sample) {
  const Grid& grid = call.step.grid;
  const std::int64_t units = units_per_sample(grid);
  const double count = static_cast<double>(grid.channels * grid.positions);
  out.logprob_q[sample] = static_cast<T>(sum(call.log_q + sample * units, units) - count * half_log_two_pi);
}

// NaN if there is one.
double largest_log_variance(const Forward& call) {
  const std::int64_t units = call.step.grid.batch * units_per_sample(call.step.grid);
  double largest = -std::numeric_limits<double>::infinity();
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const double value = call.logvar_max[unit];
    if (value > largest || value != value) largest = value;
  }
  // The map is monotone, so it is applied to the largest raw one.
  const VarianceMap<double>& map = call.step.q_map;
  return call.step.stable ? gaussian<true>(0.0, largest, exponential<true>(largest, map), map).log_var
                          : gaussian<false>(0.0, largest, exponential<false>(largest, map), map).log_var;
}

}  // namespace

template <class T>
void combine(const Forward& call, const std::optional<Window>& window, Sums<T> out) {
  const Grid& grid = call.step.grid;
  const std::int64_t work = grid.column_blocks * grid.rows + grid.row_blocks * grid.columns;
  at::parallel_for(0, grid.batch, sums_per_thread / work + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t sample = begin; sample < end; ++sample) {
      if (call.step.kl != KL::none) combine_kl(call, window, out, sample);
      combine_log_q(call, out, sample);
    }
  });
  *out.qvar_max = static_cast<T>(largest_log_variance(call));
}

template void combine(const Forward&, const std::optional<Window>&, Sums<float>);
template void combine(const Forward&, const std::optional<Window>&, Sums<double>);

}  // namespace ladder_kernels::cpu
