// What of a tensor is a thread's, and how it reads and writes it: sixteen bytes at a time where every tensor allows it,
// else element by element, of any dtype and strides.
//
// An access names the compute type T, the `width` columns of a thread, how many `blocks` an SM is to hold (which bounds
// the registers), and two kinds of references to a thread's columns in one sample of a view, which are loaded from and
// stored to row by row.
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

// f(the view's first element, of its dtype).
template <class F>
__device__ __forceinline__ void with_dtype(const View& view, F f) {
  switch (view.dtype) {
    case Dtype::float16: return f(static_cast<__half*>(view.data));
    case Dtype::bfloat16: return f(static_cast<__nv_bfloat16*>(view.data));
    case Dtype::float32: return f(static_cast<float*>(view.data));
    case Dtype::float64: return f(static_cast<double*>(view.data));
  }
}

// ---- Where a thread's elements lie.

// `collapsed`: known to have one dim of space. Of a position, else of a channel.
template <bool collapsed>
LADDER_FN std::int64_t offset(const Grid& grid, const View& view, int index, bool position) {
  if (collapsed || grid.space_dims == 1 || !position) return index * (position ? view.space[2] : view.channel);
  const int plane = index / grid.width;
  return plane / grid.height * view.space[0] + plane % grid.height * view.space[1] +
         index % grid.width * view.space[2];
}

template <bool collapsed>
LADDER_FN std::int64_t row_offset(const Grid& grid, const View& view, int row) {
  return offset<collapsed>(grid, view, row, grid.channels_inner);
}

template <bool collapsed>
LADDER_FN std::int64_t column_offset(const Grid& grid, const View& view, int column) {
  return offset<collapsed>(grid, view, column, !grid.channels_inner);
}

// Whether a flat position of space lies in the window.
LADDER_FN bool inside(const Window& window, int position) {
  const int row = position / window.width % window.height, column = position % window.width;
  return row >= window.row_start && row < window.row_stop && column >= window.column_start &&
         column < window.column_stop;
}

// A thread's place: its sample, its columns, and its rows `row`, `row + tiles.rows`, ... of `tiles.turns`.
//
// Its columns are vectors of `vector` neighbours, `gap` apart, so that neighbouring threads have neighbouring vectors.
struct Place {
  int sample, row_block, column_block;
  int lane;  // among the threads of a row
  int row, column, gap;
  bool has_columns;

  template <int vector>
  __device__ int column_of(int i) const {
    return column + i / vector * gap + i % vector;
  }
};

template <class Access>
LADDER_FN Place place_of(const Grid& grid, const Tiles& tiles, int block, int thread) {
  constexpr int width = Access::width, vector = Access::vector;
  const int lanes = tiles.lanes.value, row_block = block / tiles.column_blocks;
  Place place;
  place.column_block = block % tiles.column_blocks;
  place.row_block = row_block % tiles.row_blocks;
  place.sample = row_block / tiles.row_blocks;
  place.lane = thread % tiles.lanes;
  place.row = place.row_block * tiles.turns * tiles.rows + thread / tiles.lanes;
  const int first = place.column_block * lanes * width, columns = min(grid.columns - first, lanes * width);
  place.column = first + place.lane * vector;
  place.gap = Access::ragged ? lanes : columns / (width / vector);
  place.has_columns = place.lane * vector < min(place.gap, columns) && thread < lanes * tiles.rows;
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
  asm("" : "+l"(value));
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

// Any strides and dtypes. Columns past the last one read as zeros.
template <class T, int width>
class SingleColumns {
 public:
  __device__ SingleColumns(const Grid& grid, const View& view, const Place& place, int half = 0)
      : grid(grid), view(view), place(place), first(place.sample * view.batch + half * view.half) {}

  __device__ Values<T, width> load(int row) const {
    Values<T, width> values{};
    each(row, [&](const auto& element, int i) { convert(element, values.at[i]); });
    return values;
  }

  __device__ void store(int row, const Values<T, width>& values) const {
    each(row, [&](auto& element, int i) { convert(values.at[i], element); });
  }

 private:
  template <class F>
  __device__ void each(int row, F f) const {
    const std::int64_t in_row = first + row_offset<false>(grid, view, row);
    with_dtype(view, [&](auto* data) {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const int column = place.column_of<1>(i);
        if (column < grid.columns) f(data[in_row + column_offset<false>(grid, view, column)], i);
      }
    });
  }

  const Grid& grid;
  const View& view;
  const Place& place;
  std::int64_t first;
};

// Parameters, z and their gradients have elements E; noise and what belongs to the elementwise KL, floats.
template <class E>
struct Vectors {
  using T = float;
  static constexpr int width = vector_width, vector = 16 / sizeof(E), blocks = 5;
  static constexpr bool ragged = false;
  using Columns = VectorColumns<E, width, vector>;
  using FloatColumns = VectorColumns<float, width, vector>;
};

// Any strides and dtypes. A thread may have columns past the last one.
template <class Compute>
struct Singles {
  using T = Compute;
  static constexpr int width = single_width, vector = 1, blocks = sizeof(T) == sizeof(float) ? 3 : 2;
  static constexpr bool ragged = true;
  using Columns = SingleColumns<T, width>;
  using FloatColumns = Columns;
};

}  // namespace ladder_kernels::cuda
