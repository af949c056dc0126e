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

// Rows of elements `Stored`, `width` of which are whole sixteen-byte vectors; `vectorises` has seen to it.
template <class Stored, int width>
struct VectorColumns {
  char* data;  // null: not there
  int row_bytes;

  __device__ VectorColumns(const Grid& grid, const View& view, std::int64_t sample, int column, int half = 0) {
    const std::int64_t first = sample * view.batch + half * view.half + column;
    data = view.data == nullptr ? nullptr : reinterpret_cast<char*>(static_cast<Stored*>(view.data) + first);
    row_bytes = static_cast<int>(row_stride(grid, view) * sizeof(Stored));
  }

  __device__ Values<float, width> load(int row) const {
    Values<float, width> values{};
    if (data == nullptr) return values;
    Values<uint4, vectors> raw;
#pragma unroll
    for (int i = 0; i < vectors; ++i) raw.at[i] = address(row)[i];
    const auto stored = math::bit_cast<Values<Stored, width>>(raw);
#pragma unroll
    for (int i = 0; i < width; ++i) convert(stored.at[i], values.at[i]);
    return values;
  }

  __device__ void store(int row, const Values<float, width>& values) const {
    if (data == nullptr) return;
    Values<Stored, width> stored;
#pragma unroll
    for (int i = 0; i < width; ++i) convert(values.at[i], stored.at[i]);
    const auto raw = math::bit_cast<Values<uint4, vectors>>(stored);
#pragma unroll
    for (int i = 0; i < vectors; ++i) address(row)[i] = raw.at[i];
  }

 private:
  static constexpr int vectors = width * sizeof(Stored) / sizeof(uint4);

  __device__ uint4* address(int row) const {
    return reinterpret_cast<uint4*>(data + static_cast<std::int64_t>(row) * row_bytes);
  }
};

template <class T>
struct SingleColumn {
  const Grid& grid;
  const View& view;
  std::int64_t first;

  __device__ SingleColumn(const Grid& grid, const View& view, std::int64_t sample, int column, int half = 0)
      : grid(grid), view(view) {
    first = sample * view.batch + half * view.half + column_offset(grid, view, column);
  }

  __device__ Values<T, 1> load(int row) const {
    return {view.data == nullptr ? T(0) : load_any<T>(view, first + row_offset(grid, view, row))};
  }

  __device__ void store(int row, Values<T, 1> value) const {
    if (view.data != nullptr) store_any(view, first + row_offset(grid, view, row), value.at[0]);
  }
};

// Parameters, z and their gradients have elements E; noise and what belongs to the elementwise KL, floats.
template <class E>
struct Vectors {
  using T = float;
  static constexpr int width = 16 / sizeof(E);
  using Columns = VectorColumns<E, width>;
  using FloatColumns = VectorColumns<float, width>;
};

// Any strides and dtypes.
template <class Compute>
struct Singles {
  using T = Compute;
  static constexpr int width = 1;
  using Columns = SingleColumn<T>;
  using FloatColumns = SingleColumn<T>;
};

}  // namespace ladder_kernels::cuda
