#include <ATen/Parallel.h>

#include <memory>

#include "host.h"

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

double sum_window(const double* by_position, const Grid& grid, const WindowSides& window) {
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
  T *samplewise, *restricted, *channelwise, *spatial, *logprob_q, *qvar_max;
};

template <class T>
void combine_kl(const Forward& call, const std::optional<WindowSides>& window, const Sums<T>& out,
                std::int64_t sample) {
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
    const double value = call.largest_raw[unit];
    if (value > largest || value != value) largest = value;
  }
  return log_variance(call.step.variance, largest, call.step.q_map);
}

// From the partial sums of units to the outputs, in fixed order and in double. There is at least one unit; its partial
// sums are used up.
template <class T>
void combine(const Forward& call, const std::optional<WindowSides>& window, Sums<T> out) {
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

template <class T>
void run_and_combine(Forward& call, const std::optional<WindowSides>& window, const Outputs& out) {
  const Grid& grid = call.step.grid;
  const std::int64_t units = grid.batch * units_per_sample(grid);
  const bool has_kl = call.step.kl != KL::none;
  const std::int64_t row_sums = has_kl ? grid.batch * grid.column_blocks * grid.rows : 0;
  const std::int64_t column_sums = has_kl ? grid.batch * grid.row_blocks * grid.columns : 0;
  const std::unique_ptr<double[]> partials(new double[row_sums + column_sums + 2 * units]);
  call.row_sums = partials.get();
  call.column_sums = call.row_sums + row_sums;
  call.log_q = call.column_sums + column_sums;
  call.largest_raw = call.log_q + units;
  run(call, units);

  const auto& [z, samplewise, restricted, channelwise, spatial, logprob_q, largest, elementwise] = out;
  combine<T>(call, window,
             {data_of<T>(samplewise), data_of<T>(restricted), data_of<T>(channelwise), data_of<T>(spatial),
              data_of<T>(logprob_q), data_of<T>(largest)});
}

}  // namespace

Outputs forward(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, const Options& options) {
  Forward call{step_of(q, p, source, options)};
  const Grid& grid = call.step.grid;
  const auto sums = call.step.in_double ? at::kDouble : at::kFloat;
  Outputs out = empty_outputs(q, options, sums);
  if (q.numel() == 0) {
    fill_empty(out);
    return out;
  }
  const OptionalTensor &z = out[0], &element_kl = out[7];
  if (z) call.z = view_of(*z, grid);
  if (element_kl) call.kl = view_of(*element_kl, grid);
  if (call.step.in_double) {
    run_and_combine<double>(call, options.window, out);
  } else {
    run_and_combine<float>(call, options.window, out);
  }
  return out;
}

at::Tensor sample(const at::Tensor& q, const OptionalTensor& source, const Options& options) {
  Forward call{step_of(q, {}, source, options)};
  const Grid& grid = call.step.grid;
  at::Tensor z = empty_dense(q, grid.batch, grid.channels, q.scalar_type(), options.channels_last);
  call.z = view_of(z, grid);
  run(call, grid.batch * units_per_sample(grid));
  return z;
}

}  // namespace ladder_kernels::cpu
