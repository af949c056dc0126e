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
  const std::int64_t row_sums = grid.batch * grid.column_blocks * grid.rows;
  const std::int64_t column_sums = grid.batch * grid.row_blocks * grid.columns;
  const at::Tensor partials = at::empty(row_sums + column_sums + 2 * units, at::kDouble);
  call.row_sums = partials.data_ptr<double>();
  call.column_sums = call.row_sums + row_sums;
  call.log_q = call.column_sums + column_sums;
  call.logvar_max = call.log_q + units;
  run(call, units);

  const auto& [z, samplewise, restricted, channelwise, spatial, logprob_q, qvar_max, elementwise] = out;
  combine<T>(call, window,
             {samplewise.data_ptr<T>(), window ? restricted->data_ptr<T>() : nullptr, channelwise.data_ptr<T>(),
              spatial.data_ptr<T>(), logprob_q.data_ptr<T>(), qvar_max.data_ptr<T>()});
}

}  // namespace

Outputs forward(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
                bool analytical, bool stable, std::optional<double> logvar_max, double temperature,
                at::OptionalIntArrayRef window, bool elementwise) {
  Forward call{step_of(q, p, source, draw, analytical, stable, logvar_max, temperature)};
  const Grid& grid = call.step.grid;
  const auto restricted_to = window_of(window, grid);
  const auto sums = call.step.in_double ? at::kDouble : at::kFloat;
  Outputs out = empty_outputs(q, call.step.draw, sums, restricted_to.has_value(), elementwise);
  if (q.numel() == 0) {
    fill_empty(out);
    return out;
  }
  const OptionalTensor &z = std::get<0>(out), &kl = std::get<7>(out);
  if (z) call.z = view_of(*z, grid);
  if (kl) call.kl = view_of(*kl, grid);
  if (call.step.in_double) {
    run_and_combine<double>(call, restricted_to, out);
  } else {
    run_and_combine<float>(call, restricted_to, out);
  }
  return out;
}

at::Tensor sample(const at::Tensor& q, const OptionalTensor& source, std::string_view draw, bool /*analytical*/,
                  bool stable, std::optional<double> logvar_max, double temperature,
                  at::OptionalIntArrayRef /*window*/, bool /*elementwise*/) {
  Forward call{step_of(q, {}, source, draw, false, stable, logvar_max, temperature)};
  const Grid& grid = call.step.grid;
  call.step.kl = KL::none;
  at::Tensor z = empty_dense(q, grid.batch, grid.channels, q.scalar_type());
  call.z = view_of(z, grid);
  run(call, grid.batch * units_per_sample(grid));
  return z;
}

}  // namespace ladder_kernels::cpu
