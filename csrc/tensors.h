// What both devices ask of tensors, and the tensors that they make.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>
#include <vector>

#include "dtype.h"

namespace ladder_kernels {

inline std::int64_t positions_of(const at::Tensor& packed) {
  std::int64_t positions = 1;
  for (std::int64_t dim = 2; dim < packed.dim(); ++dim) positions *= packed.size(dim);
  return positions;
}

inline Dtype dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf: return Dtype::float16;
    case at::kBFloat16: return Dtype::bfloat16;
    case at::kFloat: return Dtype::float32;
    case at::kDouble: return Dtype::float64;
    default: TORCH_CHECK_TYPE(false, "expected float16, bfloat16, float32 or float64, got ", tensor.scalar_type());
  }
}

// Shapes that belong to packed parameters q (B, 2C, *S): (B, C, *S) and (B, *S).
inline std::vector<std::int64_t> latent_shape(const at::Tensor& q) {
  auto shape = q.sizes().vec();
  shape[1] /= 2;
  return shape;
}

inline std::vector<std::int64_t> spatial_shape(const at::Tensor& q) {
  auto shape = q.sizes().vec();
  shape.erase(shape.begin() + 1);
  return shape;
}

// Uninitialised (batch, channels, *S) with the space of `packed`, dense: channels-last or contiguous.
inline at::Tensor empty_dense(const at::Tensor& packed, std::int64_t batch, std::int64_t channels,
                              at::ScalarType dtype, bool channels_last) {
  auto sizes = packed.sizes().vec();
  sizes[0] = batch;
  sizes[1] = channels;
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = channels_last ? channels : 1;
  for (std::size_t dim = sizes.size() - 1; dim >= 2; --dim) {
    strides[dim] = stride;
    stride *= std::max<std::int64_t>(sizes[dim], 1);
  }
  strides[1] = channels_last ? 1 : stride;
  strides[0] = channels_last ? stride : stride * channels;
  return at::empty_strided(sizes, strides, packed.options().dtype(dtype));
}

}  // namespace ladder_kernels
