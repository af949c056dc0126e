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

// The dims of space are the last of `tensor`, from `first` on.
void set_space(View& view, const at::Tensor& tensor, std::int64_t first) {
  const std::int64_t lead = 3 - (tensor.dim() - first);
  for (std::int64_t dim = first; dim < tensor.dim(); ++dim) view.space[lead + dim - first] = tensor.stride(dim);
}

bool take_vectors(const Grid& grid, View& view, Dtype dtype) {
  if (view.data == nullptr) return true;
  constexpr std::int64_t word = 16;
  const std::int64_t size = size_of(dtype), row = grid.channels_inner ? view.space[2] : view.channel;
  const bool aligned = reinterpret_cast<std::uintptr_t>(view.data) % word == 0 && view.batch * size % word == 0 &&
                       view.half * size % word == 0 && row * size % word == 0;
  const bool neighbours = (grid.channels_inner ? view.channel : view.space[2]) == 1;
  if (view.dtype != dtype || !aligned || !neighbours) return false;
  if (std::abs(row * size) > std::numeric_limits<int>::max()) return false;
  view.row_bytes = static_cast<int>(row * size);
  return true;
}

// The grid of the latent that packed parameters q (B, 2C, *S) describe, its elements in the order of `channels_last`.
// Space is not collapsed yet.
Grid grid_of(const at::Tensor& q, bool channels_last) {
  const LatentShape shape = shape_of(q, channels_last);
  // Rows past the last one are numbered too, at most a block's.
  constexpr std::int64_t most = std::numeric_limits<int>::max() - (1 << 16);
  TORCH_CHECK_VALUE(shape.batch <= most && shape.channels <= most && shape.positions <= most, "at most ", most,
                    " samples, channels and positions, got ", q.sizes());
  Grid grid{};
  grid.batch = static_cast<int>(shape.batch);
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

View packed_view(const at::Tensor& packed, const Grid& grid) {
  View view = latent_view(packed, grid);
  view.half = packed.size(1) / 2 * packed.stride(1);
  return view;
}

View latent_view(const at::Tensor& latent, const Grid& grid) {
  View view = sample_view(latent, grid);
  view.channel = latent.stride(1);
  set_space(view, latent, 2);
  return view;
}

View sample_view(const at::Tensor& values, const Grid& grid) {
  View view;
  view.data = values.data_ptr();
  view.dtype = dtype_of(values);
  view.batch = values.size(0) == grid.batch ? values.stride(0) : 0;
  return view;
}

View channel_view(const at::Tensor& values, const Grid& grid) {
  View view = sample_view(values, grid);
  view.channel = values.stride(1);
  return view;
}

View space_view(const at::Tensor& values, const Grid& grid) {
  View view = sample_view(values, grid);
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
  grid.height = grid.space[1];
  grid.width = grid.space[2];
}

bool take_vectors(Step& step, std::initializer_list<View*> like_q, std::initializer_list<View*> in_float) {
  const Grid& grid = step.grid;
  if (step.computed_in_double || grid.space_dims != 1 || grid.columns % vector_width != 0) return false;
  const auto take_all = [&](std::initializer_list<View*> views, Dtype dtype) {
    return std::all_of(views.begin(), views.end(), [&](View* view) { return take_vectors(grid, *view, dtype); });
  };
  const Dtype dtype = step.q.dtype, source = step.draw == Draw::latent ? dtype : Dtype::float32;
  return take_all({&step.q, &step.p}, dtype) && take_vectors(grid, step.source, source) && take_all(like_q, dtype) &&
         take_all(in_float, Dtype::float32);
}

Tiles tiles_of(const Grid& grid, int width, int most_turns) {
  const int lanes = power_of_two(divide_up(grid.columns, width), max_lanes);
  const int rows = power_of_two(grid.rows, max_threads / lanes);
  const std::int64_t column_blocks = divide_up(grid.columns, lanes * width), row_tiles = divide_up(grid.rows, rows);
  const std::int64_t wanted = grid.batch * column_blocks * row_tiles / full_grid;
  const std::int64_t turns = std::clamp<std::int64_t>(wanted, 1, std::min<std::int64_t>(most_turns, row_tiles));
  const std::int64_t row_blocks = divide_up(row_tiles, turns);
  TORCH_CHECK_VALUE(grid.batch * row_blocks * column_blocks <= std::numeric_limits<int>::max(),
                    "too many elements for one launch");
  const auto narrow = [](std::int64_t value) { return static_cast<int>(value); };
  return {width, rows, narrow(turns), lanes, narrow(row_blocks), narrow(column_blocks)};
}

std::int64_t partials_bytes(const Step& step, const Tiles& tiles) {
  const Grid& grid = step.grid;
  const std::int64_t values = std::int64_t{4} * blocks_per_sample(tiles) +
                              std::int64_t{1} * tiles.column_blocks.value * grid.rows +
                              std::int64_t{1} * tiles.row_blocks.value * grid.columns;
  return grid.batch * values * (step.computed_in_double ? 8 : 4);
}

void set_partials(Forward& call, void* memory) {
  const Grid& grid = call.step.grid;
  const std::int64_t size = call.step.computed_in_double ? 8 : 4, blocks = blocks_per_sample(call.tiles);
  char* const bytes = static_cast<char*>(memory);
  call.block_sums = bytes;
  call.row_sums = bytes + 4 * size * grid.batch * blocks;
  call.column_sums = static_cast<char*>(call.row_sums) + size * grid.batch * call.tiles.column_blocks.value * grid.rows;
}

}  // namespace ladder_kernels::cuda
