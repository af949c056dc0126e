#include "arguments.h"

#include <limits>

#include "geometry.h"

namespace ladder_kernels::cuda {
namespace {

void check_device(const at::Tensor& tensor, const char* name, const at::Tensor& q) {
  TORCH_CHECK_VALUE(tensor.device() == q.device(), name, " must be on q's device ", q.device(), ", got ",
                    tensor.device());
}

void check_tensor(const at::Tensor& tensor, const char* name, at::IntArrayRef shape, const at::Tensor& q) {
  check_device(tensor, name, q);
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
}

void check_packed(const at::Tensor& q, const OptionalTensor& p) {
  TORCH_CHECK_VALUE(q.device().is_cuda(), "q must be on a GPU, got ", q.device());
  TORCH_CHECK_VALUE(q.dim() >= 3 && q.dim() <= 5 && q.size(1) > 0 && q.size(1) % 2 == 0,
                    "q must be (batch, 2 * channels, 1 to 3 spatial dims), got ", q.sizes());
  if (!p) return;
  auto shape = q.sizes().vec();
  if (p->dim() > 0 && p->size(0) == 1) shape[0] = 1;
  check_tensor(*p, "p", shape, q);
}

void set_source(Step& step, const at::Tensor& q, const OptionalTensor& source, std::string_view draw) {
  step.draw = draw == "latent" ? Draw::latent : draw == "mode" ? Draw::mode : Draw::noise;
  if (step.draw == Draw::mode) return;
  TORCH_CHECK_VALUE(source.has_value(), "draw '", draw, "' needs a source");
  if (draw == "seed") {
    check_device(*source, "seed", q);
    TORCH_CHECK_VALUE(source->scalar_type() == at::kLong && source->numel() == 1,
                      "seed must be one int64 element, got ", source->numel(), " of ", source->scalar_type());
    step.seed = source->const_data_ptr<std::int64_t>();
    return;
  }
  TORCH_CHECK_VALUE(draw == "noise" || draw == "latent", "draw must be noise, seed, latent or mode, got ", draw);
  auto shape = q.sizes().vec();
  shape[1] /= 2;
  check_tensor(*source, "source", shape, q);
  step.source = latent_view(*source, step.grid);
}

template <class T>
Parameters<T> parameters_of(std::optional<double> logvar_max, double temperature, bool has_p) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const VarianceMap<T> map{logvar_max ? static_cast<T>(*logvar_max) : infinity, static_cast<T>(variance_floor)};
  return {map, has_p ? map : VarianceMap<T>{infinity, T(0)}, static_cast<T>(temperature)};
}

}  // namespace

Step step_of(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, std::string_view draw,
             bool analytical, bool stable, std::optional<double> logvar_max, double temperature) {
  check_packed(q, p);
  Step step{};
  step.grid = grid_of(q);
  step.q = packed_view(q, step.grid);
  if (p) step.p = packed_view(*p, step.grid);
  step.kl = analytical ? KL::analytic : KL::monte_carlo;
  step.stable = stable;
  step.in_float = parameters_of<float>(logvar_max, temperature, p.has_value());
  step.in_double = parameters_of<double>(logvar_max, temperature, p.has_value());
  set_source(step, q, source, draw);
  return step;
}

Window window_of(at::IntArrayRef w, const Grid& grid) {
  const int height = grid.space[1], width = grid.space[2];
  TORCH_CHECK_VALUE(w.size() == 4 && 0 <= w[0] && w[0] <= w[1] && w[1] <= height && 0 <= w[2] && w[2] <= w[3] &&
                        w[3] <= width,
                    "window must be rows and columns [start, stop) of the latent, got ", w);
  const auto narrow = [](std::int64_t value) { return static_cast<int>(value); };
  return {narrow(w[0]), narrow(w[1]), narrow(w[2]), narrow(w[3]), height, width};
}

OptionalTensor checked_grad(const OptionalTensor& grad, const char* name, at::IntArrayRef shape, at::ScalarType dtype,
                            const at::Tensor& q) {
  if (!grad) return grad;
  check_tensor(*grad, name, shape, q);
  return grad->to(dtype);
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
