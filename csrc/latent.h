// What a kernel is told about tensors, whatever the device.
#pragma once

#include <cstdint>

namespace ladder_kernels {

// The element types that tensors may have.
enum class Dtype : std::uint8_t { float16, bfloat16, float32, float64 };

// A latent as rows of columns in the memory order of z: channels of positions, or positions of channels.
struct LatentShape {
  std::int64_t batch, channels, space[3], positions;
  bool channels_inner;  // columns are channels
  std::int64_t rows, columns;
};

}  // namespace ladder_kernels
