// Where a thread's elements lie.
#pragma once

#include "../plan.h"

namespace ladder_kernels::cuda {

// `collapsed`: known to have one dim of space.
template <bool collapsed>
LADDER_FN std::int64_t position_offset(const Grid& grid, const View& view, int position) {
  if (collapsed || grid.space_dims == 1) return position * view.space[2];
  const int plane = position / grid.space[2];
  return plane / grid.space[1] * view.space[0] + plane % grid.space[1] * view.space[1] +
         position % grid.space[2] * view.space[2];
}

template <bool collapsed>
LADDER_FN std::int64_t row_offset(const Grid& grid, const View& view, int row) {
  return grid.channels_inner ? position_offset<collapsed>(grid, view, row) : row * view.channel;
}

template <bool collapsed>
LADDER_FN std::int64_t column_offset(const Grid& grid, const View& view, int column) {
  return grid.channels_inner ? column * view.channel : position_offset<collapsed>(grid, view, column);
}

// Whether a flat position of space lies in the window.
LADDER_FN bool inside(const Window& window, int position) {
  const int row = position / window.width % window.height, column = position % window.width;
  return row >= window.row_start && row < window.row_stop && column >= window.column_start &&
         column < window.column_stop;
}

// A thread's place: its sample, its columns, and its rows `row`, `row + tiles.rows`, ... of `tiles.steps`.
//
// Its columns are vectors of `vector` neighbours, `gap` apart, so that neighbouring threads have neighbouring vectors.
struct Place {
  std::int64_t sample, row_block, column_block;
  int lane;  // among the threads of a row
  int row, column, gap;
  bool has_columns;

  template <int vector>
  __device__ int column_of(int i) const {
    return column + i / vector * gap + i % vector;
  }
};

template <int width, int vector>
LADDER_FN Place place_of(const Grid& grid, const Tiles& tiles, std::int64_t block, int thread) {
  Place place;
  place.column_block = block % tiles.column_blocks;
  place.row_block = block / tiles.column_blocks % tiles.row_blocks;
  place.sample = block / (tiles.column_blocks * tiles.row_blocks);
  place.lane = thread % tiles.lanes;
  place.row = static_cast<int>(place.row_block * tiles.steps * tiles.rows) + thread / tiles.lanes;
  const int first = static_cast<int>(place.column_block * tiles.lanes * width);
  const int columns = min(grid.columns - first, tiles.lanes * width);
  place.column = first + place.lane * vector;
  place.gap = columns / (width / vector);
  place.has_columns = place.lane * width < columns && thread < tiles.lanes * tiles.rows;
  return place;
}

}  // namespace ladder_kernels::cuda
