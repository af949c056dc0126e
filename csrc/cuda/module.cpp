// The Python module ladder_kernels._CUDA: registers the ops ladder_kernels_cuda::{forward, backward, sample}.
#include "../module.h"

PyMODINIT_FUNC PyInit__CUDA() {
  using namespace ladder_kernels;
  // On the CPU too: the ops themselves say best that they want a GPU.
  return make_module<cuda::forward, cuda::backward, cuda::sample>(
      "_CUDA", "ladder_kernels_cuda", {c10::DispatchKey::CUDA, c10::DispatchKey::CPU});
}
