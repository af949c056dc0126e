// Where a thread's elements lie.
#pragma once

#include "plan.h"

namespace ladder_kernels::cuda {

LADDER_FN std::int64_t position_offset(const Grid& grid, const View& view, int position) {
  if (grid.space_dims == 1) return position * view.space[2];
  const int plane = position / grid.space[2];
  return plane / grid.space[1] * view.space[0] + plane % grid.space[1] * view.space[1] +
         position % grid.space[2] * view.space[2];
}

LADDER_FN std::int64_t row_offset(const Grid& grid, const View& view, int row) {
  return grid.channels_inner ? position_offset(grid, view, row) : row * view.channel;
}

LADDER_FN std::int64_t column_offset(const Grid& grid, const View& view, int column) {
  return grid.channels_inner ? column * view.channel : position_offset(grid, view, column);
}

LADDER_FN std::int64_t row_stride(const Grid& grid, const View& view) {
  return grid.channels_inner ? view.space[2] : view.channel;
}

// Whether a flat position of space lies in the window.
LADDER_FN bool inside(const Window& window, int position) {
  const int row = position / window.width % window.height, column = position % window.width;
  return row >= window.row_start && row < window.row_stop && column >= window.column_start &&
         column < window.column_stop;
}

// A thread's place: its sample, its first column, and its rows `row`, `row + tiles.rows`, ... of `tiles.steps`.
struct Place {
  std::int64_t sample;
  std::int64_t row_block, column_block;
  int lane;  // among the threads of a row
  int row, column;
};

LADDER_FN Place place_of(const Tiles& tiles, std::int64_t block, int thread) {
  Place place;
  place.column_block = block % tiles.column_blocks;
  place.row_block = block / tiles.column_blocks % tiles.row_blocks;
  place.sample = block / (tiles.column_blocks * tiles.row_blocks);
  place.lane = thread % tiles.lanes;
  place.row = static_cast<int>(place.row_block * tiles.steps * tiles.rows + thread / tiles.lanes);
  place.column = static_cast<int>((place.column_block * tiles.lanes + place.lane) * tiles.width);
  return place;
}

}  // namespace ladder_kernels::cuda
