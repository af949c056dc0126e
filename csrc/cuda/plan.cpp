#include <algorithm>
#include <limits>

#include "host.h"

namespace ladder_kernels::cuda {
namespace {

// Several tiles to a block only once there are enough blocks to fill the largest GPU: their start and their partial
// sums are then shared by more elements. A fixed number, so that sums do not depend on the GPU.
constexpr std::int64_t full_grid = 1024;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The smallest power of two that is neither less than `size` nor more than `most`, itself one.
int power_of_two(std::int64_t size, int most) {
  int power = 1;
  while (power < size && power < most) power *= 2;
  return power;
}

std::int64_t size_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

View batch_view(const at::Tensor& tensor, const Grid& grid) {
  View view;
  view.data = tensor.data_ptr();
  view.dtype = dtype_of(tensor);
  view.batch = tensor.size(0) == grid.batch ? tensor.stride(0) : 0;
  return view;
}

// The dims of space are the last of `tensor`, from `first` on.
void set_space(View& view, const at::Tensor& tensor, std::int64_t first) {
  const std::int64_t lead = 3 - (tensor.dim() - first);
  for (std::int64_t dim = first; dim < tensor.dim(); ++dim) view.space[lead + dim - first] = tensor.stride(dim);
}

bool takes_vectors(const Grid& grid, const View& view) {
  constexpr std::int64_t word = 16;
  const std::int64_t size = size_of(view.dtype), row = grid.channels_inner ? view.space[2] : view.channel;
  const bool aligned = reinterpret_cast<std::uintptr_t>(view.data) % word == 0 && view.batch * size % word == 0 &&
                       view.half * size % word == 0 && row * size % word == 0;
  return aligned && (grid.channels_inner ? view.channel : view.space[2]) == 1 &&
         std::abs(row * size) <= std::numeric_limits<int>::max();
}

// The grid of the latent that packed parameters q (B, 2C, *S) describe, its elements in the order of `channels_last`.
// Space is not collapsed yet.
Grid grid_of(const at::Tensor& q, bool channels_last) {
  const LatentShape shape = shape_of(q, channels_last);
  // Rows past the last one are numbered too, at most a block's.
  constexpr std::int64_t most = std::numeric_limits<int>::max() - (1 << 16);
  TORCH_CHECK_VALUE(shape.channels <= most && shape.positions <= most, "at most ", most,
                    " channels and positions, got ", q.sizes());
  Grid grid{};
  grid.batch = shape.batch;
  grid.rows = static_cast<int>(shape.rows);
  grid.columns = static_cast<int>(shape.columns);
  grid.channels_inner = shape.channels_inner;
  grid.space_dims = 3;
  for (int dim = 0; dim < 3; ++dim) grid.space[dim] = static_cast<int>(shape.space[dim]);
  return grid;
}

template <class T>
Parameters<T> parameters_of(const Options& options, bool has_p) {
  const VarianceMap<double> p_map = has_p ? options.map : unit_map(options.variance);
  return {cast<T>(options.map), cast<T>(p_map), static_cast<T>(options.temperature)};
}

}  // namespace

Step step_of(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, const Options& options) {
  check_inputs(q, p, source, options, at::kCUDA);
  Step step{};
  step.grid = grid_of(q, options.channels_last);
  step.q = packed_view(q, step.grid);
  if (p) step.p = packed_view(*p, step.grid);
  step.draw = options.draw;
  step.kl = options.kl;
  step.variance = options.variance;
  step.computed_in_double = computed_in_double(q, p, source);
  step.in_float = parameters_of<float>(options, p.has_value());
  step.in_double = parameters_of<double>(options, p.has_value());
  if (options.philox) {
    step.seed = source->const_data_ptr<std::int64_t>();
  } else if (step.draw != Draw::mode) {
    step.source = latent_view(*source, step.grid);
  }
  return step;
}

Window window_of(const WindowSides& w, const Grid& grid) {
  const int height = grid.space[1], width = grid.space[2];
  check_window(w, height, width);
  const auto narrow = [](std::int64_t value) { return static_cast<int>(value); };
  return {narrow(w[0]), narrow(w[1]), narrow(w[2]), narrow(w[3]), height, width};
}

bool is_hot(const Step& step) {
  return step.draw == Draw::noise && !step.computed_in_double && step.variance != Variance::stable_without_floor &&
         (step.p.data == nullptr || step.p.dtype == step.q.dtype) &&
         (step.source.data == nullptr || step.source.dtype == Dtype::float32);
}

View packed_view(const at::Tensor& packed, const Grid& grid) {
  View view = latent_view(packed, grid);
  view.half = packed.size(1) / 2 * packed.stride(1);
  return view;
}

View latent_view(const at::Tensor& latent, const Grid& grid) {
  View view = batch_view(latent, grid);
  view.channel = latent.stride(1);
  set_space(view, latent, 2);
  return view;
}

View sample_view(const at::Tensor& values, const Grid& grid) { return batch_view(values, grid); }

View channel_view(const at::Tensor& values, const Grid& grid) {
  View view = batch_view(values, grid);
  view.channel = values.stride(1);
  return view;
}

View space_view(const at::Tensor& values, const Grid& grid) {
  View view = batch_view(values, grid);
  set_space(view, values, 1);
  return view;
}

void collapse_space(Grid& grid, std::initializer_list<View*> views) {
  int kept = 0;
  for (int dim = 0; dim < 3; ++dim) {
    const int size = grid.space[dim];
    if (size == 1) continue;
    const bool merges = kept > 0 && std::all_of(views.begin(), views.end(), [&](const View* view) {
      return view->space[kept - 1] == size * view->space[dim];
    });
    if (!merges) ++kept;
    grid.space[kept - 1] = merges ? grid.space[kept - 1] * size : size;
    for (View* const view : views) view->space[kept - 1] = view->space[dim];
  }
  grid.space_dims = std::max(kept, 1);
  // To the right; in front, where nothing is left, a stride of 0.
  for (int dim = 2; dim >= 0; --dim) {
    const int from = dim - (3 - kept);
    grid.space[dim] = from < 0 ? 1 : grid.space[from];
    for (View* const view : views) view->space[dim] = from < 0 ? 0 : view->space[from];
  }
}

bool take_vectors(const Grid& grid, std::initializer_list<View*> views) {
  if (grid.space_dims != 1 || grid.columns % vector_width != 0) return false;
  for (View* const view : views) {
    if (view->data == nullptr) continue;
    if (!takes_vectors(grid, *view)) return false;
    const std::int64_t row = grid.channels_inner ? view->space[2] : view->channel;
    view->row_bytes = static_cast<int>(row * size_of(view->dtype));
  }
  return true;
}

Tiles tiles_of(const Grid& grid, int width, int max_steps) {
  Tiles tiles{};
  tiles.width = width;
  tiles.lanes = power_of_two(divide_up(grid.columns, width), warp_size);
  tiles.rows = power_of_two(grid.rows, max_threads / tiles.lanes);
  tiles.column_blocks = divide_up(grid.columns, tiles.lanes * width);
  const std::int64_t row_tiles = divide_up(grid.rows, tiles.rows);
  const std::int64_t wanted = grid.batch * tiles.column_blocks * row_tiles / full_grid;
  tiles.steps = static_cast<int>(std::clamp<std::int64_t>(wanted, 1, std::min<std::int64_t>(max_steps, row_tiles)));
  tiles.row_blocks = divide_up(row_tiles, tiles.steps);
  const std::int64_t blocks = grid.batch * tiles.row_blocks * tiles.column_blocks;
  TORCH_CHECK_VALUE(blocks <= std::numeric_limits<int>::max(), "too many elements for one launch");
  return tiles;
}

}  // namespace ladder_kernels::cuda
