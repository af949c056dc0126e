#include <ATen/ops/empty.h>

#include "../outputs.h"
#include "arguments.h"
#include "geometry.h"
#include "run.h"

namespace ladder_kernels::cpu {
namespace {

template <class T>
void run_and_combine(Forward& call, const std::optional<Window>& window, const Outputs& out) {
  const Grid& grid = call.step.grid;
  const std::int64_t units = grid.batch * units_per_sample(grid);
  const bool has_kl = call.step.kl != KL::none;
  const std::int64_t row_sums = has_kl ? grid.batch * grid.column_blocks * grid.rows : 0;
  const std::int64_t column_sums = has_kl ? grid.batch * grid.row_blocks * grid.columns : 0;
  const at::Tensor partials = at::empty(row_sums + column_sums + 2 * units, at::kDouble);
  call.row_sums = partials.data_ptr<double>();
  call.column_sums = call.row_sums + row_sums;
  call.log_q = call.column_sums + column_sums;
  call.logvar_max = call.log_q + units;
  run(call, units);

  const auto& [z, samplewise, restricted, channelwise, spatial, logprob_q, qvar_max, elementwise] = out;
  combine<T>(call, window,
             {data_of<T>(samplewise), data_of<T>(restricted), data_of<T>(channelwise), data_of<T>(spatial),
              logprob_q.data_ptr<T>(), qvar_max.data_ptr<T>()});
}

}  // namespace

Outputs forward(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
                std::string_view kl, bool stable, std::optional<double> logvar_max, double temperature,
                at::OptionalIntArrayRef window, bool elementwise, bool channels_last) {
  Forward call{step_of(q, p, source, draw, kl, stable, logvar_max, temperature, channels_last)};
  const Grid& grid = call.step.grid;
  const auto restricted_to = window_of(window, grid);
  const auto sums = call.step.in_double ? at::kDouble : at::kFloat;
  Outputs out = empty_outputs(q, call.step.draw, call.step.kl, sums, restricted_to.has_value(), elementwise,
                              channels_last);
  if (q.numel() == 0) {
    fill_empty(out);
    return out;
  }
  const OptionalTensor &z = std::get<0>(out), &element_kl = std::get<7>(out);
  if (z) call.z = view_of(*z, grid);
  if (element_kl) call.kl = view_of(*element_kl, grid);
  if (call.step.in_double) {
    run_and_combine<double>(call, restricted_to, out);
  } else {
    run_and_combine<float>(call, restricted_to, out);
  }
  return out;
}

at::Tensor sample(const at::Tensor& q, const OptionalTensor& source, std::string_view draw,
                  std::string_view /*kl*/, bool stable, std::optional<double> logvar_max, double temperature,
                  at::OptionalIntArrayRef /*window*/, bool /*elementwise*/, bool channels_last) {
  Forward call{step_of(q, {}, source, draw, "none", stable, logvar_max, temperature, channels_last)};
  const Grid& grid = call.step.grid;
  at::Tensor z = empty_dense(q, grid.batch, grid.channels, q.scalar_type(), channels_last);
  call.z = view_of(z, grid);
  run(call, grid.batch * units_per_sample(grid));
  return z;
}

}  // namespace ladder_kernels::cpu
