#include "arguments.h"

#include <limits>

#include "geometry.h"

namespace ladder_kernels::cuda {
namespace {

template <class T>
Parameters<T> parameters_of(std::optional<double> logvar_max, double temperature, bool has_p) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const VarianceMap<T> map{logvar_max ? static_cast<T>(*logvar_max) : infinity, static_cast<T>(variance_floor)};
  return {map, has_p ? map : VarianceMap<T>{infinity, T(0)}, static_cast<T>(temperature)};
}

}  // namespace

Step step_of(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
             std::string_view kl, bool stable, std::optional<double> logvar_max, double temperature,
             bool channels_last) {
  check_parameters(q, p, at::kCUDA);
  Step step{};
  step.grid = grid_of(q, channels_last);
  step.q = packed_view(q, step.grid);
  if (p) step.p = packed_view(*p, step.grid);
  step.kl = check_kl(kl, p);
  step.stable = stable;
  step.in_float = parameters_of<float>(logvar_max, temperature, p.has_value());
  step.in_double = parameters_of<double>(logvar_max, temperature, p.has_value());
  step.draw = check_source(q, source, draw);
  if (draw == "seed") {
    step.seed = source->const_data_ptr<std::int64_t>();
  } else if (step.draw != Draw::mode) {
    step.source = latent_view(*source, step.grid);
  }
  return step;
}

Window window_of(at::IntArrayRef w, const Grid& grid) {
  const int height = grid.space[1], width = grid.space[2];
  check_window(w, height, width);
  const auto narrow = [](std::int64_t value) { return static_cast<int>(value); };
  return {narrow(w[0]), narrow(w[1]), narrow(w[2]), narrow(w[3]), height, width};
}

bool in_double(const Step& step) {
  for (const View* view : {&step.q, &step.p, &step.source}) {
    if (view->data != nullptr && view->dtype == Dtype::float64) return true;
  }
  return false;
}

bool is_hot(const Step& step) {
  return step.draw == Draw::noise && !in_double(step) && (step.p.data == nullptr || step.p.dtype == step.q.dtype) &&
         (step.source.data == nullptr || step.source.dtype == Dtype::float32);
}

}  // namespace ladder_kernels::cuda
