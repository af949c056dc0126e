// PyInit__CUDA(), which an import of ladder_kernels._CUDA calls. No kernel is registered for DispatchKey::CUDA: Python
// calls the functions themselves.
#include "../module.h"

PYBIND11_MODULE(_CUDA, module) {
  using namespace ladder_kernels;
  define<cuda::forward, cuda::backward, cuda::sample>(module);
}
