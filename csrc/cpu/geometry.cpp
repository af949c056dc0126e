#include "geometry.h"

#include <algorithm>

#include "../tensors.h"

namespace ladder_kernels::cpu {
namespace {

// Enough units to share among threads, large enough that their partial sums cost nothing.
constexpr std::int64_t units_wanted = 32, unit_size = 16384, smallest_tile = 1024;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return b == 0 ? 0 : (a + b - 1) / b; }

}  // namespace

Grid grid_of(const at::Tensor& q, bool channels_last) {
  Grid grid{};
  grid.batch = q.size(0);
  grid.channels = q.size(1) / 2;
  grid.positions = positions_of(q);
  for (std::int64_t i = 0; i < 3; ++i) grid.space[i] = i + q.dim() < 5 ? 1 : q.size(i + q.dim() - 3);
  // With a single position both orders are the same memory, and one long row beats many short ones.
  grid.channels_inner = channels_last || grid.positions == 1;
  grid.rows = grid.channels_inner ? grid.positions : grid.channels;
  grid.columns = grid.channels_inner ? grid.channels : grid.positions;
  if (grid.rows == 0 || grid.columns == 0) return grid;

  const std::int64_t share = grid.batch * grid.rows * grid.columns / units_wanted;
  const std::int64_t tile = std::clamp(share, smallest_tile, tile_size), unit = std::clamp(share, tile, unit_size);
  // Tiles of about equal width, whole vectors wide.
  const std::int64_t width = divide_up(grid.columns, divide_up(grid.columns, tile));
  grid.tile_columns = std::min(grid.columns, divide_up(width, 16) * 16);
  grid.tile_rows = std::min(grid.rows, std::max<std::int64_t>(tile / grid.tile_columns, 1));
  grid.unit_rows = std::min(grid.rows, divide_up(unit, grid.tile_rows * grid.tile_columns) * grid.tile_rows);
  grid.row_blocks = divide_up(grid.rows, grid.unit_rows);
  grid.column_blocks = divide_up(grid.columns, grid.tile_columns);
  return grid;
}

std::int64_t units_per_sample(const Grid& grid) { return grid.row_blocks * grid.column_blocks; }

View view_of(const at::Tensor& latent, const Grid& grid) {
  View view;
  view.data = latent.data_ptr();
  view.dtype = dtype_of(latent);
  view.batch = latent.size(0) == 1 ? 0 : latent.stride(0);
  view.channel = latent.stride(1);
  const std::int64_t missing = 5 - latent.dim();
  for (std::int64_t i = missing; i < 3; ++i) view.space[i] = latent.stride(i + 2 - missing);
  for (std::int64_t i = 2; i >= 0; --i) {
    if (grid.space[i] == 1) continue;
    if (view.run == 1) view.step = view.space[i];
    if (view.space[i] != view.run * view.step) break;
    view.run *= grid.space[i];
  }
  return view;
}

View half_view(const at::Tensor& packed, int half, const Grid& grid) {
  View view = view_of(packed, grid);
  view.data = static_cast<char*>(view.data) + half * grid.channels * view.channel * packed.element_size();
  return view;
}

}  // namespace ladder_kernels::cpu
