#include "arguments.h"

#include <limits>

#include "geometry.h"

namespace ladder_kernels::cpu {

Step step_of(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
             std::string_view kl, bool stable, std::optional<double> logvar_max, double temperature,
             bool channels_last) {
  check_parameters(q, p, at::kCPU);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  Step step{};
  step.grid = grid_of(q, channels_last);
  step.q_mean = half_view(q, 0, step.grid);
  step.q_logvar = half_view(q, 1, step.grid);
  step.kl = check_kl(kl, p);
  step.stable = stable;
  step.temperature = temperature;
  step.q_map = {logvar_max.value_or(infinity), variance_floor};
  step.p_map = {infinity, 0};
  if (p) {
    step.p_mean = half_view(*p, 0, step.grid);
    step.p_logvar = half_view(*p, 1, step.grid);
    step.p_map = step.q_map;
  }
  step.draw = check_source(q, source, draw);
  step.philox = draw == "seed";
  if (step.philox) {
    step.seed = static_cast<std::uint64_t>(*source->const_data_ptr<std::int64_t>());
  } else if (step.draw != Draw::mode) {
    step.source = view_of(*source, step.grid);
  }
  step.in_double = q.scalar_type() == at::kDouble || (p && p->scalar_type() == at::kDouble) ||
                   (source && source->scalar_type() == at::kDouble);
  return step;
}

std::optional<Window> window_of(at::OptionalIntArrayRef window, const Grid& grid) {
  if (!window) return std::nullopt;
  const auto& w = *window;
  check_window(w, grid.space[1], grid.space[2]);
  return Window{w[0], w[1], w[2], w[3]};
}

}  // namespace ladder_kernels::cpu
