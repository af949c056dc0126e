#include "plan.h"


using namespace ladder_kernels;
using namespace ladder_kernels::cuda;

static constexpr int most_turns = 8;

std::int64_t ladder_backward_scratch(const LadderStep* step) { return fits(*step) ? 0 : too_large; }

int ladder_backward(const LadderStep* step, const void* q, const void* p, const void* source, const void* grad_z,
                    const void* grad_samplewise, const void* grad_restricted, const void* grad_channelwise,
                    const void* grad_spatial, const void* grad_log_q, const void* grad_elementwise, void* grad_q,
                    void* grad_p, void* grad_latent, void*, LadderQueue queue) {
  Backward call{step_of(*step, q, p, source)};
  Grid& grid = call.step.grid;
  call.window = window_of(step->window, grid);
  call.has_window = grad_restricted != nullptr;
  call.grad_z = view_of(grad_z, step->grad_z);
  call.grad_samplewise = view_of(grad_samplewise, step->grad_samplewise);
  call.grad_restricted = view_of(grad_restricted, step->grad_restricted);
  call.grad_channelwise = view_of(grad_channelwise, step->grad_channelwise);
  call.grad_spatial = view_of(grad_spatial, step->grad_spatial);
  call.grad_log_q = view_of(grad_log_q, step->grad_log_q);
  call.grad_elementwise = view_of(grad_elementwise, step->grad_elementwise);

  const bool shared_p = step->shared_p && grad_p != nullptr;
  LadderTensor of_p = dense(*step, dtype_of(step->p), 2 * step->channels);
  if (shared_p) of_p.strides[0] = 0;
  call.grad_q = packed_view(grad_q, dense(*step, dtype_of(step->q), 2 * step->channels), *step);
  call.grad_p = packed_view(grad_p, of_p, *step);
  call.grad_latent = view_of(grad_latent, dense(*step, dtype_of(step->source), step->channels));

  collapse_space(grid, {&call.step.q, &call.step.p, &call.step.source, &call.grad_z, &call.grad_elementwise,
                        &call.grad_spatial, &call.grad_q, &call.grad_p, &call.grad_latent});
  const bool vectors =
      take_vectors(call.step, {&call.grad_z, &call.grad_q, &call.grad_p, &call.grad_latent}, {&call.grad_elementwise});
  call.tiles = tiles_of(grid, vectors ? vector_width : single_width, shared_p ? 1 : most_turns);
  launch_backward(call, shared_p, reinterpret_cast<cudaStream_t>(queue));
  return cudaGetLastError();
}
