// The partial sums that the forward kernel leaves to `sums_kernel`; `Forward::partials` says what they are.
#pragma once

#include "../plan.h"

namespace ladder_kernels::cuda {

template <class T>
struct Partials {
  T *column_sums, *row_sums, *kl, *restricted, *log_q, *logvar_max;

  __device__ explicit Partials(const Forward& call) {
    const Grid& grid = call.step.grid;
    const std::int64_t scalars = grid.batch * blocks_per_sample(call.tiles);
    column_sums = static_cast<T*>(call.partials);
    row_sums = column_sums + call.tiles.row_blocks * grid.batch * grid.columns;
    kl = row_sums + call.tiles.column_blocks * grid.batch * grid.rows;
    restricted = kl + scalars;
    log_q = restricted + scalars;
    logvar_max = log_q + scalars;
  }
};

}  // namespace ladder_kernels::cuda
