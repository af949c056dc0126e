// The Python module ladder_kernels._CUDA. Its functions are called directly: there is no kernel for DispatchKey::CUDA.
#include "../module.h"

PYBIND11_MODULE(_CUDA, module) {
  using namespace ladder_kernels;
  define<cuda::forward, cuda::backward, cuda::sample>(module);
}
