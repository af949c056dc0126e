#include <algorithm>
#include <array>

#include "plan.h"

namespace ladder_kernels::cpu {
namespace {

using Strides = std::array<std::int64_t, 4>;

// Values by batch, two dims of space, and what follows one another: positions, or channels in space of one position.
struct Block {
  std::int64_t batches, planes, rows, columns;
  double* data;
  Strides strides;
};

Strides channel_strides(const LadderTensor& grad) { return {grad.strides[0], 0, 0, grad.strides[1]}; }

Strides position_strides(const LadderTensor& grad) {
  return {grad.strides[0], grad.strides[2], grad.strides[3], grad.strides[4]};
}

template <class T>
void add(const Block& to, const void* grad, const Strides& strides) {
  if (grad == nullptr) return;
  for (std::int64_t i = 0; i < to.batches * to.planes * to.rows; ++i) {
    const std::int64_t row = i % to.rows, plane = i / to.rows % to.planes, batch = i / to.rows / to.planes;
    double* const sums = to.data + batch * to.strides[0] + plane * to.strides[1] + row * to.strides[2];
    const T* const values = static_cast<const T*>(grad) + batch * strides[0] + plane * strides[1] + row * strides[2];
    if (strides[3] == 1) {
      for (std::int64_t column = 0; column < to.columns; ++column) sums[column] += values[column];
    } else {
      for (std::int64_t column = 0; column < to.columns; ++column) sums[column] += values[column * strides[3]];
    }
  }
}

// What arrives at the sums.
struct Incoming {
  const void *samplewise, *restricted, *channelwise, *spatial, *log_q;
};

template <class T>
void add_up(const LadderStep& step, const Incoming& grads, double* channels, double* positions, double* log_q) {
  const std::int64_t depth = step.space[0], height = step.space[1], width = step.space[2];
  const Block of_channels{step.batch, 1, 1, step.channels, channels, {step.channels}};
  add<T>(of_channels, grads.samplewise, channel_strides(step.grad_samplewise));
  add<T>(of_channels, grads.channelwise, channel_strides(step.grad_channelwise));

  const std::int64_t* const window = step.window;
  Block of_positions{step.batch, depth, height, width, positions, {depth * height * width, height * width, width}};
  add<T>(of_positions, grads.spatial, position_strides(step.grad_spatial));
  of_positions.rows = window[1] - window[0];
  of_positions.columns = window[3] - window[2];
  of_positions.data += window[0] * width + window[2];
  add<T>(of_positions, grads.restricted, position_strides(step.grad_restricted));

  add<T>({1, 1, 1, step.batch, log_q}, grads.log_q, {0, 0, 0, step.grad_log_q.strides[0]});
}

}  // namespace
}  // namespace ladder_kernels::cpu

using namespace ladder_kernels;
using namespace ladder_kernels::cpu;

int ladder_backward(const LadderStep* step, const void* q, const void* p, const void* source, const void* grad_z,
                    const void* grad_samplewise, const void* grad_restricted, const void* grad_channelwise,
                    const void* grad_spatial, const void* grad_log_q, const void* grad_elementwise, void* grad_q,
                    void* grad_p, void* grad_latent, void*, LadderQueue threads) {
  Backward call{step_of(*step, q, p, source)};
  const Grid& grid = call.step.grid;
  // Of the KL's sums, those that all positions of a channel share (batch, channels), and all channels of a position
  // (batch, positions); and those of log q (batch,).
  const std::int64_t channels = call.step.kl == KL::none ? 0 : grid.batch * grid.channels;
  const std::int64_t positions = grad_spatial || grad_restricted ? grid.batch * grid.positions : 0;
  const std::int64_t count = channels + positions + grid.batch;
  const Doubles shared(count);
  if (shared.data == nullptr) return no_memory;
  std::fill_n(shared.data, count, 0.0);
  double *const by_channel = shared.data, *const by_position = by_channel + channels;
  double* const log_q = by_position + positions;
  const Incoming incoming{grad_samplewise, grad_restricted, grad_channelwise, grad_spatial, grad_log_q};
  call.step.in_double ? add_up<double>(*step, incoming, by_channel, by_position, log_q)
                      : add_up<float>(*step, incoming, by_channel, by_position, log_q);
  call.by_channel = by_channel;
  call.by_position = positions > 0 ? by_position : nullptr;
  call.log_q = log_q;
  call.grad_z = view_of(grad_z, step->grad_z, grid);
  call.grad_kl = view_of(grad_elementwise, step->grad_elementwise, grid);

  const LadderTensor of_q = dense(*step, dtype_of(step->q), 2 * grid.channels);
  call.grads.q_mean = half_view(grad_q, of_q, 0, grid);
  call.grads.q_raw = half_view(grad_q, of_q, 1, grid);
  const LadderTensor of_p = dense(*step, dtype_of(step->p), 2 * grid.channels);
  call.shared_p = step->shared_p && grad_p != nullptr;
  (call.shared_p ? call.p_mean_total : call.grads.p_mean) = half_view(grad_p, of_p, 0, grid);
  (call.shared_p ? call.p_raw_total : call.grads.p_raw) = half_view(grad_p, of_p, 1, grid);
  call.grads.latent = view_of(grad_latent, dense(*step, dtype_of(step->source), grid.channels), grid);
  return run(call, units_per_sample(grid) * (call.shared_p ? 1 : grid.batch), threads);
}
