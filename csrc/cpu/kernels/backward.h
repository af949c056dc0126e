// The backward pass: one read of the inputs and of the incoming gradients, one write of the packed gradients.
#pragma once

#include "inputs.h"
#include "sums.h"

namespace ladder_kernels::cpu::LADDER_ISA {

template <class T>
struct alignas(64) BackwardBuffers {
  InputBuffers<T> inputs;
  T grad_z[tile_size], half_grad_kl[tile_size], grad_by_column[tile_size], grad_elementwise[tile_size];
  T q_mean[tile_size], q_raw[tile_size], p_mean[tile_size], p_raw[tile_size], latent[tile_size];
  double p_mean_total[tile_size], p_raw_total[tile_size];
};

// No other buffers are larger.
constexpr std::size_t scratch_size = sizeof(BackwardBuffers<double>);

// Half the incoming gradient of the KL of every element, from the sums it went into.
template <class T>
static Rows<const T> read_half_grad_kl(const Backward& call, const Tile& tile, BackwardBuffers<T>& buffers) {
  const Grid& grid = call.step.grid;
  const double* const by_channel = call.by_channel + tile.batch * grid.channels;
  const double* const by_position = call.by_position ? call.by_position + tile.batch * grid.positions : nullptr;
  const double* const by_row = grid.channels_inner ? by_position : by_channel;
  const double* const by_column = grid.channels_inner ? by_channel : by_position;
  for (std::int64_t i = 0; i < tile.columns; ++i) {
    buffers.grad_by_column[i] = static_cast<T>(by_column ? by_column[tile.column + i] : 0.0);
  }
  const Rows<T> total = in_buffer(buffers.half_grad_kl, tile);
  const Rows<const T> elementwise = read(call.grad_kl, grid, tile, buffers.grad_elementwise);
  for (std::int64_t row = 0; row < tile.rows; ++row) {
    const T shared = static_cast<T>(by_row ? by_row[tile.row + row] : 0.0);
    const T* const own = elementwise[row];
    T* const to = total[row];
#pragma omp simd
    for (std::int64_t i = 0; i < tile.columns; ++i) to[i] = T(0.5) * (shared + buffers.grad_by_column[i] + own[i]);
  }
  return {total.data, total.stride};
}

template <class Options, class T>
LADDER_FN void backward_element(const InputLine<T>& in, std::int64_t i, IncomingGradients<T> incoming,
                                const StepGradients<T*>& out) {
  const StepGradients<T> grads = step_gradients<Options::draw, Options::kl>(
      q_at<Options>(in, i), p_at<Options>(in, i), source_at<Options>(in, i), in.temperature, incoming);
  out.q_mean[i] = grads.q_mean;
  out.q_raw[i] = grads.q_raw;
  if constexpr (Options::kl != KL::none) {
    out.p_mean[i] = grads.p_mean;
    out.p_raw[i] = grads.p_raw;
  }
  if constexpr (Options::draw == Draw::latent) out.latent[i] = grads.latent;
}

template <class Options, class T = typename Options::T>
static void backward_tile(const Backward& call, const Tile& tile, BackwardBuffers<T>& buffers) {
  constexpr bool has_kl = Options::kl != KL::none;
  const Grid& grid = call.step.grid;
  const StepGradients<View>& views = call.grads;
  const Inputs<T> in = read_inputs<Options>(call.step, tile, buffers.inputs);
  const Rows<const T> grad_z = read(call.grad_z, grid, tile, buffers.grad_z);
  const Rows<const T> half_grad_kl =
      has_kl ? read_half_grad_kl(call, tile, buffers) : Rows<const T>{nullptr, tile.columns};
  const T half_grad_log_q = static_cast<T>(0.5 * call.log_q[tile.batch]);
  const Rows<T> q_mean = target(views.q_mean, grid, tile, buffers.q_mean),
                q_raw = target(views.q_raw, grid, tile, buffers.q_raw),
                p_mean = target(views.p_mean, grid, tile, buffers.p_mean),
                p_raw = target(views.p_raw, grid, tile, buffers.p_raw),
                latent = target(views.latent, grid, tile, buffers.latent);
  const Lines lines = lines_of(tile, in, grad_z, q_mean, q_raw, p_mean, p_raw, latent);
  for (std::int64_t line = 0; line < lines.count; ++line) {
    const InputLine<T> from = line_of(tile, in, line);
    const StepGradients<T*> to{q_mean[line], q_raw[line], p_mean[line], p_raw[line], latent[line]};
    const T *const of_z = grad_z[line], *const half_of_kl = half_grad_kl[line];
#pragma omp simd
    for (std::int64_t i = 0; i < lines.length; ++i) {
      backward_element<Options, T>(from, i, {of_z[i], has_kl ? half_of_kl[i] : T(0), half_grad_log_q}, to);
    }
  }
  write(views.q_mean, grid, tile, buffers.q_mean);
  write(views.q_raw, grid, tile, buffers.q_raw);
  write(views.p_mean, grid, tile, buffers.p_mean);
  write(views.p_raw, grid, tile, buffers.p_raw);
  write(views.latent, grid, tile, buffers.latent);
}

// The tile of every sample, with p's gradients summed over them.
template <class Options, class T = typename Options::T>
static void backward_over_batch(const Backward& call, Tile tile, BackwardBuffers<T>& buffers) {
  const Grid& grid = call.step.grid;
  for (std::int64_t i = 0; i < size(tile); ++i) buffers.p_mean_total[i] = buffers.p_raw_total[i] = 0;
  for (tile.batch = 0; tile.batch < grid.batch; ++tile.batch) {
    backward_tile<Options>(call, tile, buffers);
    add_to(buffers.p_mean_total, buffers.p_mean, size(tile));
    add_to(buffers.p_raw_total, buffers.p_raw, size(tile));
  }
  tile.batch = 0;
  store(call.p_mean_total, grid, tile, buffers.p_mean_total);
  store(call.p_raw_total, grid, tile, buffers.p_raw_total);
}

static void backward(const Backward& call, std::int64_t begin, std::int64_t end, void* scratch) {
  with_options(call.step, [&](auto options) {
    using Options = decltype(options);
    auto& buffers = *static_cast<BackwardBuffers<typename Options::T>*>(scratch);
    for (std::int64_t index = begin; index < end; ++index) {
      for_each_tile(call.step.grid, unit_at(call.step.grid, index), [&](const Tile& tile) {
        if (call.shared_p) {
          backward_over_batch<Options>(call, tile, buffers);
        } else {
          backward_tile<Options>(call, tile, buffers);
        }
      });
    }
  });
}

}  // namespace ladder_kernels::cpu::LADDER_ISA
