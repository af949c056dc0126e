#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

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
  const auto options = q.options().dtype(call.step.in_double ? at::kDouble : at::kFloat);

  Outputs out;
  auto& [z, samplewise, restricted, channelwise, spatial, logprob_q, qvar_max, kl] = out;
  if (call.step.draw != Draw::latent) {
    z = empty_dense(q, grid.batch, grid.channels, q.scalar_type());
    call.z = view_of(*z, grid);
  }
  if (elementwise) {
    kl = empty_dense(q, grid.batch, grid.channels, options.dtype().toScalarType());
    call.kl = view_of(*kl, grid);
  }
  samplewise = at::zeros({grid.batch}, options);
  if (window) restricted = at::zeros({grid.batch}, options);
  channelwise = at::zeros({grid.batch, grid.channels}, options);
  spatial = at::zeros(spatial_shape(q), options);
  logprob_q = at::zeros({grid.batch}, options);
  qvar_max = at::full({}, -std::numeric_limits<double>::infinity(), options);
  if (q.numel() == 0) return out;
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
