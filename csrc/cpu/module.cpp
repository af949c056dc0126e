// PyInit__C(), which an import of ladder_kernels._C calls.
#include "../module.h"

PYBIND11_MODULE(_C, module) {
  using namespace ladder_kernels;
  define<cpu::forward, cpu::backward, cpu::sample>(module);
}
