// The forward pass: one read of the inputs, one write of z, and partial sums of the KL.
#pragma once

#include "inputs.h"
#include "sums.h"

namespace ladder_kernels::cpu::LADDER_ISA {

template <class T>
struct alignas(64) ForwardBuffers {
  InputBuffers<T> inputs;
  T z[tile_size], kl[tile_size], log_q[tile_size];
};

// The partial sums of a unit, on their way to `Forward`, and where those of its rows and columns go.
struct UnitSums {
  double log_q = 0, largest_raw = -std::numeric_limits<double>::infinity();
  double *rows = nullptr, *columns = nullptr;
};

// Functions of one element, because GCC does not vectorise a loop whose own body has variables of class type.
template <class Options, class T>
LADDER_FN void sample_element(const InputLine<T>& in, std::int64_t i, T& z) {
  z = draw_latent<Options::draw>(q_at<Options>(in, i), source_at<Options>(in, i), in.temperature).z;
}

template <class Options, class T>
LADDER_FN void forward_element(const InputLine<T>& in, std::int64_t i, T& z, T& kl, T& log_q) {
  const auto q = q_at<Options>(in, i), p = p_at<Options>(in, i);
  const Latent<T> latent = draw_latent<Options::draw>(q, source_at<Options>(in, i), in.temperature);
  z = latent.z;
  if constexpr (Options::kl != KL::none) kl = divergence<Options::kl>(q, p, latent);
  log_q = log_density(latent.eps, q);
}

template <class Options, class T = typename Options::T>
static void sample_tile(const Forward& call, const Tile& tile, ForwardBuffers<T>& buffers) {
  const Inputs<T> in = read_inputs<Options>(call.step, tile, buffers.inputs);
  const Rows<T> z = target(call.z, call.step.grid, tile, buffers.z);
  const Lines lines = lines_of(tile, in, z);
  for (std::int64_t line = 0; line < lines.count; ++line) {
    const InputLine<T> from = line_of(tile, in, line);
    T* const to_z = z[line];
#pragma omp simd
    for (std::int64_t i = 0; i < lines.length; ++i) sample_element<Options>(from, i, to_z[i]);
  }
  write(call.z, call.step.grid, tile, buffers.z);
}

template <class Options, class T = typename Options::T>
static void forward_tile(const Forward& call, const Tile& tile, ForwardBuffers<T>& buffers, UnitSums& sums) {
  const Grid& grid = call.step.grid;
  const Inputs<T> in = read_inputs<Options>(call.step, tile, buffers.inputs);
  const Rows<T> z = target(call.z, grid, tile, buffers.z), kl = target(call.kl, grid, tile, buffers.kl);
  const Rows<T> log_q = in_buffer(buffers.log_q, tile);
  const Lines lines = lines_of(tile, in, z, kl);
  for (std::int64_t line = 0; line < lines.count; ++line) {
    const InputLine<T> from = line_of(tile, in, line);
    T *const to_z = z[line], *const to_kl = kl[line], *const to_log_q = log_q[line];
#pragma omp simd
    for (std::int64_t i = 0; i < lines.length; ++i) forward_element<Options>(from, i, to_z[i], to_kl[i], to_log_q[i]);
    const double largest = maximum(from.q_raw, lines.length);
    if (largest > sums.largest_raw || largest != largest) sums.largest_raw = largest;
  }
  write(call.z, grid, tile, buffers.z);
  sums.log_q += sum(buffers.log_q, size(tile));
  if constexpr (Options::kl == KL::none) return;

  write(call.kl, grid, tile, buffers.kl);
  std::int64_t row = 0;
  for (; row + 4 <= tile.rows; row += 4) {
    add_rows<4>(kl[row], kl.stride, tile.columns, sums.rows + tile.row + row, sums.columns);
  }
  for (; row < tile.rows; ++row) add_rows<1>(kl[row], 0, tile.columns, sums.rows + tile.row + row, sums.columns);
}

template <class Options, class T = typename Options::T>
static void forward_unit(const Forward& call, std::int64_t index, ForwardBuffers<T>& buffers) {
  const Grid& grid = call.step.grid;
  const Unit unit = unit_at(grid, index);
  UnitSums sums;
  if constexpr (Options::kl != KL::none) {
    const std::int64_t column = unit.column_block * grid.tile_columns;
    sums.rows = call.row_sums + (unit.batch * grid.column_blocks + unit.column_block) * grid.rows;
    sums.columns = call.column_sums + (unit.batch * grid.row_blocks + unit.row_block) * grid.columns + column;
    for (std::int64_t i = 0; i < minimum(grid.tile_columns, grid.columns - column); ++i) sums.columns[i] = 0;
  }
  for_each_tile(grid, unit, [&](const Tile& tile) { forward_tile<Options>(call, tile, buffers, sums); });
  call.log_q[index] = sums.log_q;
  call.largest_raw[index] = sums.largest_raw;
}

template <class Options, class T = typename Options::T>
static void sample_unit(const Forward& call, std::int64_t index, ForwardBuffers<T>& buffers) {
  const Grid& grid = call.step.grid;
  for_each_tile(grid, unit_at(grid, index), [&](const Tile& tile) { sample_tile<Options>(call, tile, buffers); });
}

static void forward(const Forward& call, std::int64_t begin, std::int64_t end, void* scratch) {
  with_options(call.step, [&](auto options) {
    using Options = decltype(options);
    auto& buffers = *static_cast<ForwardBuffers<typename Options::T>*>(scratch);
    if constexpr (Options::kl == KL::none) {
      if (call.log_q == nullptr) {
        for (std::int64_t index = begin; index < end; ++index) sample_unit<Options>(call, index, buffers);
        return;
      }
    }
    for (std::int64_t index = begin; index < end; ++index) forward_unit<Options>(call, index, buffers);
  });
}

}  // namespace ladder_kernels::cpu::LADDER_ISA
