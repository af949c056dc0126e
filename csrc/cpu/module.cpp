// The Python module ladder_kernels._C: registers the ops ladder_kernels_cpu::{forward, backward, sample}.
#include "../module.h"

PyMODINIT_FUNC PyInit__C() {
  using namespace ladder_kernels;
  return make_module<cpu::forward, cpu::backward, cpu::sample>("_C", "ladder_kernels_cpu", {c10::DispatchKey::CPU});
}
