// What kernels of either device are told about tensors, and how they learn it from a `LadderStep`.
#pragma once

#include "formulas.h"
#include "ladder_kernels.h"

namespace ladder_kernels {

// The element types that tensors may have, by their numbers in `LadderTensor`.
enum class Dtype : std::uint8_t { float16 = 1, bfloat16, float32, float64 };

inline Dtype dtype_of(const LadderTensor& tensor) { return static_cast<Dtype>(tensor.dtype); }

inline std::int64_t size_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

// A latent as rows of columns in the memory order of z: channels of positions, or positions of channels.
struct LatentShape {
  std::int64_t batch, channels, space[3], positions;
  bool channels_inner;  // columns are channels
  std::int64_t rows, columns;
};

inline LatentShape shape_of(const LadderStep& step) {
  const std::int64_t* const space = step.space;
  LatentShape shape{step.batch, step.channels, {space[0], space[1], space[2]}, space[0] * space[1] * space[2]};
  // With a single position both orders are the same memory, and one long row beats many short ones.
  shape.channels_inner = step.channels_last || shape.positions == 1;
  shape.rows = shape.channels_inner ? shape.positions : shape.channels;
  shape.columns = shape.channels_inner ? shape.channels : shape.positions;
  return shape;
}

// Of a dense (B, channels, *S), as a step makes them.
inline LadderTensor dense(const LadderStep& step, Dtype dtype, std::int64_t channels) {
  const std::int64_t column = step.channels_last ? channels : 1, row = column * step.space[2];
  const std::int64_t plane = row * step.space[1], whole = plane * step.space[0];
  const std::int64_t batch = step.channels_last ? whole : whole * channels, channel = step.channels_last ? 1 : whole;
  return {static_cast<std::int64_t>(dtype), true, {batch, channel, plane, row, column}};
}

// That of sums and of the elementwise KL.
inline Dtype sums_dtype(const LadderStep& step) { return step.in_double ? Dtype::float64 : Dtype::float32; }

inline Variance variance_of(const LadderStep& step) {
  return with_floor(static_cast<Variance>(step.variance), step.floor);
}

inline VarianceMap<double> q_map_of(const LadderStep& step) {
  return {step.raw_min, step.raw_max, 2 * step.beta, 1 / step.beta, step.floor};
}

inline VarianceMap<double> p_map_of(const LadderStep& step) {
  return step.p.dtype != 0 ? q_map_of(step) : unit_map(variance_of(step));
}

}  // namespace ladder_kernels
