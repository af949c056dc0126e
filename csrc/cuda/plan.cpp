#include "plan.h"

#include <algorithm>
#include <limits>

extern "C" {

const char* ladder_version() { return LADDER_VERSION; }

const char* ladder_error(int code) {
  if (code == ladder_kernels::cuda::too_large) return "more elements, samples, channels or positions than a launch counts";
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

}  // extern "C"

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

// The grid of the step's latent. Space is not collapsed yet.
Grid grid_of(const LadderStep& step) {
  const LatentShape shape = shape_of(step);
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
Parameters<T> parameters_of(const LadderStep& step) {
  return {cast<T>(q_map_of(step)), cast<T>(p_map_of(step)), static_cast<T>(step.temperature)};
}

}  // namespace

bool fits(const LadderStep& step) {
  // Rows past the last one are numbered too, at most a block's; and blocks, which have at least one element.
  constexpr std::int64_t most = std::numeric_limits<int>::max() - (1 << 16);
  const LatentShape shape = shape_of(step);
  if (shape.batch > most || shape.channels > most || shape.positions > most) return false;
  const Tiles tiles = tiles_of(grid_of(step), single_width, 1);
  return shape.batch * tiles.row_blocks.value * tiles.column_blocks.value <= most;
}

Step step_of(const LadderStep& given, const void* q, const void* p, const void* source) {
  Step step{};
  step.grid = grid_of(given);
  step.q = packed_view(q, given.q, given);
  step.p = packed_view(p, given.p, given);
  step.source = view_of(source, given.source);
  if (given.philox) step.seed = static_cast<const std::int64_t*>(source);
  step.draw = static_cast<Draw>(given.draw);
  step.kl = static_cast<KL>(given.kl);
  step.variance = variance_of(given);
  step.computed_in_double = given.in_double;
  step.in_float = parameters_of<float>(given);
  step.in_double = parameters_of<double>(given);
  return step;
}

Window window_of(const std::int64_t (&window)[4], const Grid& grid) {
  const auto narrow = [](std::int64_t value) { return static_cast<int>(value); };
  return {narrow(window[0]), narrow(window[1]), narrow(window[2]), narrow(window[3]), grid.space[1], grid.space[2]};
}

View view_of(const void* data, const LadderTensor& tensor) {
  View view;
  if (data == nullptr || tensor.dtype == 0) return view;
  view.data = const_cast<void*>(data);
  view.dtype = dtype_of(tensor);
  view.batch = tensor.strides[0];
  view.channel = tensor.strides[1];
  for (int dim = 0; dim < 3; ++dim) view.space[dim] = tensor.strides[2 + dim];
  return view;
}

View packed_view(const void* data, const LadderTensor& packed, const LadderStep& step) {
  View view = view_of(data, packed);
  view.half = step.channels * view.channel;
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
  if (!is_hot(step.variance) || step.computed_in_double || grid.space_dims != 1 || grid.columns % vector_width != 0) return false;
  const auto take_all = [&](std::initializer_list<View*> views, Dtype dtype) {
    return std::all_of(views.begin(), views.end(), [&](View* view) { return take_vectors(grid, *view, dtype); });
  };
  const Dtype dtype = step.q.dtype, source = step.draw == Draw::latent ? dtype : Dtype::float32;
  return take_all({&step.q, &step.p}, dtype) && take_vectors(grid, step.source, source) && take_all(like_q, dtype) &&
         take_all(in_float, Dtype::float32);
}

Tiles tiles_of(const Grid& grid, int width, int most_turns) {
  const int lanes = power_of_two(divide_up(grid.columns, width), max_columns / width);
  const int rows = power_of_two(grid.rows, max_threads / lanes);
  const std::int64_t column_blocks = divide_up(grid.columns, lanes * width), row_tiles = divide_up(grid.rows, rows);
  const std::int64_t wanted = grid.batch * column_blocks * row_tiles / full_grid;
  const std::int64_t turns = std::clamp<std::int64_t>(wanted, 1, std::min<std::int64_t>(most_turns, row_tiles));
  const std::int64_t row_blocks = divide_up(row_tiles, turns);
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
