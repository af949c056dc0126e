// The element types that tensors may have.
#pragma once

#include <cstdint>

namespace ladder_kernels {

enum class Dtype : std::uint8_t { float16, bfloat16, float32, float64 };

}  // namespace ladder_kernels
