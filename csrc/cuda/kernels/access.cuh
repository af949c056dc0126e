// How a thread reads and writes: sixteen bytes at a time where every tensor allows it, else one element of any dtype.
//
// An access names the compute type T, the `width` columns of a thread, and two kinds of references to a thread's
// columns in one sample of a view, which are loaded from and stored to row by row.
#pragma once

#include "convert.cuh"
#include "layout.cuh"

namespace ladder_kernels::cuda {

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
