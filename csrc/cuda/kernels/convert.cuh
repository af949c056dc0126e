// Element types: to the compute type right after the load, back right before the store.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../plan.h"

namespace ladder_kernels::cuda {

LADDER_FN void convert(float from, float& to) { to = from; }
LADDER_FN void convert(__half from, float& to) { to = __half2float(from); }
LADDER_FN void convert(__nv_bfloat16 from, float& to) { to = __bfloat162float(from); }
LADDER_FN void convert(double from, float& to) { to = static_cast<float>(from); }
LADDER_FN void convert(float from, __half& to) { to = __float2half_rn(from); }
LADDER_FN void convert(float from, __nv_bfloat16& to) { to = __float2bfloat16_rn(from); }

LADDER_FN void convert(float from, double& to) { to = from; }
LADDER_FN void convert(__half from, double& to) { to = __half2float(from); }
LADDER_FN void convert(__nv_bfloat16 from, double& to) { to = __bfloat162float(from); }
LADDER_FN void convert(double from, double& to) { to = from; }
LADDER_FN void convert(double from, __half& to) { to = __double2half(from); }
LADDER_FN void convert(double from, __nv_bfloat16& to) { to = __double2bfloat16(from); }

// The element at `offset`, of the dtype that the view has at run time.
template <class T>
LADDER_FN T load_any(const View& view, std::int64_t offset) {
  T value;
  switch (view.dtype) {
    case Dtype::float16: convert(static_cast<const __half*>(view.data)[offset], value); break;
    case Dtype::bfloat16: convert(static_cast<const __nv_bfloat16*>(view.data)[offset], value); break;
    case Dtype::float32: convert(static_cast<const float*>(view.data)[offset], value); break;
    case Dtype::float64: convert(static_cast<const double*>(view.data)[offset], value); break;
  }
  return value;
}

template <class T>
LADDER_FN void store_any(const View& view, std::int64_t offset, T value) {
  switch (view.dtype) {
    case Dtype::float16: convert(value, static_cast<__half*>(view.data)[offset]); break;
    case Dtype::bfloat16: convert(value, static_cast<__nv_bfloat16*>(view.data)[offset]); break;
    case Dtype::float32: convert(value, static_cast<float*>(view.data)[offset]); break;
    case Dtype::float64: convert(value, static_cast<double*>(view.data)[offset]); break;
  }
}

}  // namespace ladder_kernels::cuda
