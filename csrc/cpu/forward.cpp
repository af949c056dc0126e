#include "parallel.h"
#include "plan.h"

namespace ladder_kernels::cpu {
namespace {

// A thread is worth waking for some ten microseconds of work.
constexpr std::int64_t sums_per_thread = 131072;

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

double sum_window(const double* by_position, const Grid& grid, const std::int64_t* window) {
  double total = 0;
  for (std::int64_t plane = 0; plane < grid.space[0]; ++plane) {
    for (std::int64_t y = window[0]; y < window[1]; ++y) {
      const std::int64_t row = (plane * grid.space[1] + y) * grid.space[2];
      total += sum(by_position + row + window[2], window[3] - window[2]);
    }
  }
  return total;
}

// Where the sums go, each contiguous; null where there is none.
template <class T>
struct Sums {
  T *samplewise, *restricted, *channelwise, *spatial, *logprob_q, *logvar_max;
};

template <class T>
void combine_kl(const Forward& call, const std::int64_t* window, const Sums<T>& out, std::int64_t sample) {
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
  if (out.restricted != nullptr) out.restricted[sample] = static_cast<T>(sum_window(by_position, grid, window));
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
    const double value = call.largest_raw[unit];
    if (value > largest || value != value) largest = value;
  }
  return log_variance(call.step.variance, largest, call.step.q_map);
}

// From the partial sums of units to the outputs, in fixed order and in double. The partial sums are used up.
template <class T>
void combine(const Forward& call, const std::int64_t* window, const Sums<void>& to, LadderQueue threads) {
  const Sums<T> out{static_cast<T*>(to.samplewise), static_cast<T*>(to.restricted), static_cast<T*>(to.channelwise),
                    static_cast<T*>(to.spatial),    static_cast<T*>(to.logprob_q),  static_cast<T*>(to.logvar_max)};
  const Grid& grid = call.step.grid;
  const std::int64_t work = grid.column_blocks * grid.rows + grid.row_blocks * grid.columns;
  share(grid.batch, sums_per_thread / work + 1, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t sample = begin; sample < end; ++sample) {
      if (call.step.kl != KL::none) combine_kl(call, window, out, sample);
      combine_log_q(call, out, sample);
    }
  });
  *out.logvar_max = static_cast<T>(largest_log_variance(call));
}

}  // namespace
}  // namespace ladder_kernels::cpu

using namespace ladder_kernels;
using namespace ladder_kernels::cpu;

int ladder_forward(const LadderStep* step, const void* q, const void* p, const void* source, void* z, void* samplewise,
                   void* restricted, void* channelwise, void* spatial, void* logprob_q, void* logvar_max,
                   void* elementwise, void*, LadderQueue threads) {
  Forward call{step_of(*step, q, p, source)};
  const Grid& grid = call.step.grid;
  call.z = view_of(z, dense(*step, dtype_of(step->q), grid.channels), grid);
  call.kl = view_of(elementwise, dense(*step, sums_dtype(*step), grid.channels), grid);
  const std::int64_t units = grid.batch * units_per_sample(grid), samples = call.step.kl == KL::none ? 0 : grid.batch;
  const std::int64_t row_sums = samples * grid.column_blocks * grid.rows;
  const std::int64_t column_sums = samples * grid.row_blocks * grid.columns;
  const Doubles partials(row_sums + column_sums + 2 * units);
  if (partials.data == nullptr) return no_memory;
  call.row_sums = partials.data;
  call.column_sums = call.row_sums + row_sums;
  call.log_q = call.column_sums + column_sums;
  call.largest_raw = call.log_q + units;
  if (const int code = run(call, units, threads)) return code;

  const Sums<void> out{samplewise, restricted, channelwise, spatial, logprob_q, logvar_max};
  call.step.in_double ? combine<double>(call, step->window, out, threads)
                      : combine<float>(call, step->window, out, threads);
  return 0;
}

int ladder_sample(const LadderStep* step, const void* q, const void* source, void* z, LadderQueue threads) {
  Forward call{step_of(*step, q, nullptr, source)};
  const Grid& grid = call.step.grid;
  call.z = view_of(z, dense(*step, dtype_of(step->q), grid.channels), grid);
  return run(call, grid.batch * units_per_sample(grid), threads);
}
