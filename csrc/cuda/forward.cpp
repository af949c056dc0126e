#include "plan.h"

namespace ladder_kernels::cuda {
namespace {

constexpr int most_turns = 32;

Forward plan_forward(const LadderStep& step, const void* q, const void* p, const void* source, void* z, void* kl) {
  Forward call{step_of(step, q, p, source)};
  Grid& grid = call.step.grid;
  call.window = window_of(step.window, grid);
  call.z = view_of(z, dense(step, dtype_of(step.q), step.channels));
  call.kl = view_of(kl, dense(step, sums_dtype(step), step.channels));
  collapse_space(grid, {&call.step.q, &call.step.p, &call.step.source, &call.z, &call.kl});
  const bool vectors = take_vectors(call.step, {&call.z}, {&call.kl});
  call.tiles = tiles_of(grid, vectors ? vector_width : single_width, most_turns);
  return call;
}

// Aligned as the tensor is.
void* some_address(bool aligned) { return reinterpret_cast<void*>(aligned ? 16 : 8); }

}  // namespace
}  // namespace ladder_kernels::cuda

using namespace ladder_kernels;
using namespace ladder_kernels::cuda;

// Outputs that may be missing never ask for more of it.
std::int64_t ladder_forward_scratch(const LadderStep* step) {
  if (!fits(*step)) return too_large;
  void *const q = some_address(step->q.aligned), *const p = some_address(step->p.aligned),
             *const source = some_address(step->source.aligned), *const made = some_address(true);
  const Forward call = plan_forward(*step, q, p, source, made, made);
  return partials_bytes(call.step, call.tiles);
}

int ladder_forward(const LadderStep* step, const void* q, const void* p, const void* source, void* z, void* samplewise,
                   void* restricted, void* channelwise, void* spatial, void* logprob_q, void* logvar_max,
                   void* elementwise, void* scratch, LadderQueue queue) {
  Forward call = plan_forward(*step, q, p, source, z, elementwise);
  call.has_window = restricted != nullptr;
  set_partials(call, scratch);
  const bool inner = call.step.grid.channels_inner;
  const Sums sums{samplewise, restricted, inner ? spatial : channelwise, inner ? channelwise : spatial,
                  logprob_q,  logvar_max};
  const auto stream = reinterpret_cast<cudaStream_t>(queue);
  launch_forward(call, stream);
  if (const int code = cudaGetLastError()) return code;
  launch_sums(call, sums, stream);
  return cudaGetLastError();
}

int ladder_sample(const LadderStep* step, const void* q, const void* source, void* z, LadderQueue queue) {
  if (!fits(*step)) return too_large;
  Sample call{step_of(*step, q, nullptr, source)};
  Grid& grid = call.step.grid;
  call.z = view_of(z, dense(*step, dtype_of(step->q), step->channels));
  collapse_space(grid, {&call.step.q, &call.step.source, &call.z});
  call.tiles = tiles_of(grid, take_vectors(call.step, {&call.z}) ? vector_width : single_width, most_turns);
  launch_sample(call, reinterpret_cast<cudaStream_t>(queue));
  return cudaGetLastError();
}
