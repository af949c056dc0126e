// Units of work, and the compile-time options of the loops over their tiles.
#pragma once

#include "tile.h"

namespace ladder_kernels::cpu::LADDER_ISA {

// Some rows of one block of columns.
struct Unit {
  std::int64_t batch, row_block, column_block;
};

static inline Unit unit_at(const Grid& grid, std::int64_t index) {
  const std::int64_t rest = index / grid.column_blocks;
  return {rest / grid.row_blocks, rest % grid.row_blocks, index % grid.column_blocks};
}

template <class F>
static void for_each_tile(const Grid& grid, const Unit& unit, F f) {
  const std::int64_t column = unit.column_block * grid.tile_columns, first = unit.row_block * grid.unit_rows;
  const std::int64_t columns = minimum(grid.tile_columns, grid.columns - column);
  const std::int64_t end = minimum(first + grid.unit_rows, grid.rows);
  for (std::int64_t row = first; row < end; row += grid.tile_rows) {
    f(Tile{unit.batch, row, column, minimum(grid.tile_rows, end - row), columns});
  }
}

template <class Type, Draw draw_, KL kl_, bool stable_>
struct Options {
  using T = Type;
  static constexpr Draw draw = draw_;
  static constexpr KL kl = kl_;
  static constexpr bool stable = stable_;
};

template <class T, Draw draw, KL kl, class F>
static void with_options(const Step& step, F f) {
  step.stable ? f(Options<T, draw, kl, true>{}) : f(Options<T, draw, kl, false>{});
}

template <class T, Draw draw, class F>
static void with_options(const Step& step, F f) {
  switch (step.kl) {
    case KL::none: return with_options<T, draw, KL::none>(step, f);
    case KL::monte_carlo: return with_options<T, draw, KL::monte_carlo>(step, f);
    case KL::analytic: return with_options<T, draw, KL::analytic>(step, f);
  }
}

template <class T, class F>
static void with_options(const Step& step, F f) {
  switch (step.draw) {
    case Draw::noise: return with_options<T, Draw::noise>(step, f);
    case Draw::latent: return with_options<T, Draw::latent>(step, f);
    case Draw::mode: return with_options<T, Draw::mode>(step, f);
  }
}

// f(Options): the options that the step asks for.
template <class F>
static void with_options(const Step& step, F f) {
  step.in_double ? with_options<double>(step, f) : with_options<float>(step, f);
}

}  // namespace ladder_kernels::cpu::LADDER_ISA
