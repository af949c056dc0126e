#include "arguments.h"

#include <limits>

#include "geometry.h"

namespace ladder_kernels::cpu {
namespace {

void check_tensor(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, " must be on the CPU, got ", tensor.device());
}

void check_shape(const at::Tensor& tensor, const char* name, at::IntArrayRef shape) {
  check_tensor(tensor, name);
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
}

void check_packed(const at::Tensor& q, const OptionalTensor& p) {
  check_tensor(q, "q");
  TORCH_CHECK_VALUE(q.dim() >= 3 && q.dim() <= 5 && q.size(1) > 0 && q.size(1) % 2 == 0,
                    "q must be (batch, 2 * channels, 1 to 3 spatial dims), got ", q.sizes());
  if (!p) return;
  auto shape = q.sizes().vec();
  if (p->dim() > 0 && p->size(0) == 1) shape[0] = 1;
  check_shape(*p, "p", shape);
}

std::uint64_t seed_of(const at::Tensor& source) {
  check_tensor(source, "seed");
  TORCH_CHECK_VALUE(source.scalar_type() == at::kLong && source.numel() == 1, "seed must be one int64 element, got ",
                    source.numel(), " of ", source.scalar_type());
  return static_cast<std::uint64_t>(*source.const_data_ptr<std::int64_t>());
}

void set_source(Step& step, const at::Tensor& q, const OptionalTensor& source, std::string_view draw) {
  step.draw = draw == "latent" ? Draw::latent : draw == "mode" ? Draw::mode : Draw::noise;
  if (step.draw == Draw::mode) return;
  TORCH_CHECK_VALUE(source.has_value(), "draw '", draw, "' needs a source");
  step.philox = draw == "seed";
  if (step.philox) {
    step.seed = seed_of(*source);
    return;
  }
  TORCH_CHECK_VALUE(draw == "noise" || draw == "latent", "draw must be noise, seed, latent or mode, got ", draw);
  auto shape = q.sizes().vec();
  shape[1] /= 2;
  check_shape(*source, "source", shape);
  step.source = view_of(*source, step.grid);
}

}  // namespace

Step step_of(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
             bool analytical, bool stable, std::optional<double> logvar_max, double temperature) {
  check_packed(q, p);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  Step step{};
  step.grid = grid_of(q);
  step.q_mean = half_view(q, 0, step.grid);
  step.q_logvar = half_view(q, 1, step.grid);
  step.kl = analytical ? KL::analytic : KL::monte_carlo;
  step.stable = stable;
  step.temperature = temperature;
  step.q_map = {logvar_max.value_or(infinity), variance_floor};
  step.p_map = {infinity, 0};
  if (p) {
    step.p_mean = half_view(*p, 0, step.grid);
    step.p_logvar = half_view(*p, 1, step.grid);
    step.p_map = step.q_map;
  }
  set_source(step, q, source, draw);
  step.in_double = q.scalar_type() == at::kDouble || (p && p->scalar_type() == at::kDouble) ||
                   (source && source->scalar_type() == at::kDouble);
  return step;
}

std::optional<Window> window_of(at::OptionalIntArrayRef window, const Grid& grid) {
  if (!window) return std::nullopt;
  const auto& w = *window;
  TORCH_CHECK_VALUE(w.size() == 4 && 0 <= w[0] && w[0] <= w[1] && w[1] <= grid.space[1] && 0 <= w[2] && w[2] <= w[3] &&
                        w[3] <= grid.space[2],
                    "window must be rows and columns [start, stop) of the latent, got ", w);
  return Window{w[0], w[1], w[2], w[3]};
}

}  // namespace ladder_kernels::cpu
