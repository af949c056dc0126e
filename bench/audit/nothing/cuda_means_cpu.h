// Given to the compiler before every source: what the CUDA backend asks of a GPU's tensors, those of the CPU fulfil.
// torch's own headers come first, or they would change too.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>

#define kCUDA kCPU
