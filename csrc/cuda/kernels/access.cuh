// What of a tensor is a thread's, and how it reads and writes it: sixteen bytes at a time where every tensor allows it, else one element of any dtype.
//
// An access names the compute type T, the `width` columns of a thread, and two kinds of references to a thread's
// columns in one sample of a view, which are loaded from and stored to row by row.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../plan.h"

namespace ladder_kernels::cuda {

// ---- Element types: to the compute type right after the load, back right before the store.

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

// ---- Where a thread's elements lie.

// `collapsed`: known to have one dim of space.
template <bool collapsed>
LADDER_FN std::int64_t position_offset(const Grid& grid, const View& view, int position) {
  if (collapsed || grid.space_dims == 1) return position * view.space[2];
  const int plane = position / grid.space[2];
  return plane / grid.space[1] * view.space[0] + plane % grid.space[1] * view.space[1] +
         position % grid.space[2] * view.space[2];
}

template <bool collapsed>
LADDER_FN std::int64_t row_offset(const Grid& grid, const View& view, int row) {
  return grid.channels_inner ? position_offset<collapsed>(grid, view, row) : row * view.channel;
}

template <bool collapsed>
LADDER_FN std::int64_t column_offset(const Grid& grid, const View& view, int column) {
  return grid.channels_inner ? column * view.channel : position_offset<collapsed>(grid, view, column);
}

// Whether a flat position of space lies in the window.
LADDER_FN bool inside(const Window& window, int position) {
  const int row = position / window.width % window.height, column = position % window.width;
  return row >= window.row_start && row < window.row_stop && column >= window.column_start &&
         column < window.column_stop;
}

// A thread's place: its sample, its columns, and its rows `row`, `row + tiles.rows`, ... of `tiles.steps`.
//
// Its columns are vectors of `vector` neighbours, `gap` apart, so that neighbouring threads have neighbouring vectors.
struct Place {
  std::int64_t sample, row_block, column_block;
  int lane;  // among the threads of a row
  int row, column, gap;
  bool has_columns;

  template <int vector>
  __device__ int column_of(int i) const {
    return column + i / vector * gap + i % vector;
  }
};

template <int width, int vector>
LADDER_FN Place place_of(const Grid& grid, const Tiles& tiles, std::int64_t block, int thread) {
  Place place;
  place.column_block = block % tiles.column_blocks;
  place.row_block = block / tiles.column_blocks % tiles.row_blocks;
  place.sample = block / (tiles.column_blocks * tiles.row_blocks);
  place.lane = thread % tiles.lanes;
  place.row = static_cast<int>(place.row_block * tiles.steps * tiles.rows) + thread / tiles.lanes;
  const int first = static_cast<int>(place.column_block * tiles.lanes * width);
  const int columns = min(grid.columns - first, tiles.lanes * width);
  place.column = first + place.lane * vector;
  place.gap = columns / (width / vector);
  place.has_columns = place.lane * width < columns && thread < tiles.lanes * tiles.rows;
  return place;
}

// ---- How it reads and writes them.

template <class T, int count>
struct Values {
  T at[count];
};

// For what a loop needs in every turn: without this the compiler computes addresses anew for each row, to save registers
// that nothing else asks for.
__device__ __forceinline__ std::size_t pinned(std::size_t value) {
  asm volatile("" : "+l"(value));
  return value;
}
template <class T>
__device__ __forceinline__ T* pinned(T* in_global_memory) {
  return static_cast<T*>(__cvta_global_to_generic(pinned(__cvta_generic_to_global(in_global_memory))));
}

// Columns of elements `Stored` in vectors of `vector`, whole sixteen-byte words; `takes_vectors` has seen to it.
template <class Stored, int width, int vector>
class VectorColumns {
 public:
  __device__ VectorColumns(const Grid&, const View& view, const Place& place, int half = 0)
      : data(pinned(static_cast<Stored*>(view.data) + place.sample * view.batch + half * view.half + place.column)),
        row_bytes(view.row_bytes),
        gap(place.gap) {}

  __device__ Values<float, width> load(int row) const {
    Values<uint4, words> raw;
#pragma unroll
    for (int i = 0; i < words; ++i) raw.at[i] = *word(row, i);
    const auto stored = math::bit_cast<Values<Stored, width>>(raw);
    Values<float, width> values;
#pragma unroll
    for (int i = 0; i < width; ++i) convert(stored.at[i], values.at[i]);
    return values;
  }

  __device__ void store(int row, const Values<float, width>& values) const {
    Values<Stored, width> stored;
#pragma unroll
    for (int i = 0; i < width; ++i) convert(values.at[i], stored.at[i]);
    const auto raw = math::bit_cast<Values<uint4, words>>(stored);
#pragma unroll
    for (int i = 0; i < words; ++i) *word(row, i) = raw.at[i];
  }

 private:
  static constexpr int in_word = sizeof(uint4) / sizeof(Stored), words = width / in_word;

  __device__ uint4* word(int row, int i) const {
    char* const from = reinterpret_cast<char*>(data + i * in_word / vector * gap + i * in_word % vector);
    return reinterpret_cast<uint4*>(from + static_cast<std::int64_t>(row) * row_bytes);
  }

  Stored* data;
  int row_bytes, gap;
};

template <class T>
class SingleColumn {
 public:
  __device__ SingleColumn(const Grid& grid, const View& view, const Place& place, int half = 0)
      : grid(grid),
        view(view),
        first(place.sample * view.batch + half * view.half + column_offset<false>(grid, view, place.column)) {}

  __device__ Values<T, 1> load(int row) const { return {load_any<T>(view, first + row_offset<false>(grid, view, row))}; }

  __device__ void store(int row, Values<T, 1> value) const {
    store_any(view, first + row_offset<false>(grid, view, row), value.at[0]);
  }

 private:
  const Grid& grid;
  const View& view;
  std::int64_t first;
};

// Parameters, z and their gradients have elements E; noise and what belongs to the elementwise KL, floats.
template <class E>
struct Vectors {
  using T = float;
  static constexpr int width = vector_width, vector = 16 / sizeof(E);
  using Columns = VectorColumns<E, width, vector>;
  using FloatColumns = VectorColumns<float, width, vector>;
};

// Any strides and dtypes.
template <class Compute>
struct Singles {
  using T = Compute;
  static constexpr int width = 1, vector = 1;
  using Columns = SingleColumn<T>;
  using FloatColumns = SingleColumn<T>;
};

}  // namespace ladder_kernels::cuda
