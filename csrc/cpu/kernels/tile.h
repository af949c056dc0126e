// Units of work and their tiles: where these lie in a tensor, and their way from its storage type to the compute type
// and back.
#pragma once

#if defined(__GNUC__)
#define LADDER_PREFETCH(address) __builtin_prefetch(address)
#else
#define LADDER_PREFETCH(address)
#endif

namespace ladder_kernels::cpu::LADDER_ISA {

// ---- Storage types and the compute type, without branches, so that loops over them vectorise everywhere.

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

template <class Float>
LADDER_FN Float decode(Float value) {
  return value;
}

LADDER_FN float decode(BFloat16 value) {
  return math::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

LADDER_FN float decode(Half value) {
  constexpr std::uint32_t exponent_mask = 0x7c00u << 13, smallest_normal = 113u << 23;
  const std::uint32_t shifted = (value.bits & 0x7fffu) << 13, exponent = shifted & exponent_mask;
  const std::uint32_t rebiased = shifted + ((exponent == exponent_mask ? 224u : 112u) << 23);
  const float denormal = math::bit_cast<float>(shifted + smallest_normal) - math::bit_cast<float>(smallest_normal);
  const std::uint32_t magnitude = exponent == 0 ? math::bit_cast<std::uint32_t>(denormal) : rebiased;
  return math::bit_cast<float>(magnitude | (static_cast<std::uint32_t>(value.bits) & 0x8000u) << 16);
}

// Rounded to nearest even; any NaN becomes a quiet one.
LADDER_FN void encode(double value, double& to) { to = value; }

LADDER_FN void encode(float value, float& to) { to = value; }

LADDER_FN void encode(float value, BFloat16& to) {
  const std::uint32_t bits = math::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  to.bits = static_cast<std::uint16_t>(value != value ? 0x7fc0u : rounded);
}

LADDER_FN void encode(float value, Half& to) {
  constexpr std::int32_t infinity = 255 << 23, too_large = 143 << 23, smallest_normal = 113 << 23;
  const std::int32_t bits = math::bit_cast<std::int32_t>(value), magnitude = bits & 0x7fffffff;
  // Adding 1/2, whose ulp is the spacing of denormal halves, leaves their bits at the bottom.
  const float shifted = math::bit_cast<float>(magnitude) + 0.5f;
  const std::int32_t denormal = math::bit_cast<std::int32_t>(shifted) - math::bit_cast<std::int32_t>(0.5f);
  std::int32_t half = (magnitude - (112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  half = magnitude < smallest_normal ? denormal : half;
  half = magnitude >= too_large ? 0x7c00 : half;
  half = magnitude > infinity ? 0x7e00 : half;
  to.bits = static_cast<std::uint16_t>(half | (bits >> 16 & 0x8000));
}

template <class T>
constexpr Dtype dtype_of = sizeof(T) == sizeof(double) ? Dtype::float64 : Dtype::float32;

// f(a value of the storage type).
template <class F>
static void with_storage_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::float16: return f(Half{});
    case Dtype::bfloat16: return f(BFloat16{});
    case Dtype::float32: return f(float{});
    case Dtype::float64: return f(double{});
  }
}

// ---- Tiles.

struct Tile {
  std::int64_t batch, row, column, rows, columns;
};

static inline std::int64_t size(const Tile& tile) { return tile.rows * tile.columns; }

static inline std::int64_t minimum(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Some rows of one block of columns.
struct Unit {
  std::int64_t batch, row_block, column_block;
};

static inline Unit unit_at(const Grid& grid, std::int64_t index) {
  const std::int64_t rest = index / grid.column_blocks;
  return {rest / grid.row_blocks, rest % grid.row_blocks, index % grid.column_blocks};
}

template <class F>
static void for_each_tile(const Grid& grid, const Unit& unit, F f) {
  const std::int64_t column = unit.column_block * grid.tile_columns, first = unit.row_block * grid.unit_rows;
  const std::int64_t columns = minimum(grid.tile_columns, grid.columns - column);
  const std::int64_t end = minimum(first + grid.unit_rows, grid.rows);
  for (std::int64_t row = first; row < end; row += grid.tile_rows) {
    f(Tile{unit.batch, row, column, minimum(grid.tile_rows, end - row), columns});
  }
}

// Index of the tile's first element in the memory order of z.
static inline std::int64_t first_element(const Grid& grid, const Tile& tile) {
  return (tile.batch * grid.rows + tile.row) * grid.columns + tile.column;
}

// A part of a tile whose elements lie on a linear grid in a tensor. `offset` counts from the tensor's start, `done`
// from the tile's.
struct Piece {
  std::int64_t offset, row_stride, column_stride, done, rows, columns;
};

static inline std::int64_t space_offset(const View& view, const Grid& grid, std::int64_t position) {
  if (view.run == grid.positions) return position * view.step;
  const std::int64_t rest = position / grid.space[2];
  return rest / grid.space[1] * view.space[0] + rest % grid.space[1] * view.space[1] +
         position % grid.space[2] * view.space[2];
}

// The piece that begins `skipped` positions into the tile.
static inline Piece piece_at(const View& view, const Grid& grid, const Tile& tile, std::int64_t skipped) {
  const std::int64_t position = (grid.channels_inner ? tile.row : tile.column) + skipped;
  const std::int64_t channel = grid.channels_inner ? tile.column : tile.row;
  const std::int64_t offset = tile.batch * view.batch + channel * view.channel + space_offset(view, grid, position);
  const std::int64_t linear = view.run == grid.positions ? view.run - position : view.run - position % view.run;
  if (grid.channels_inner) {
    const std::int64_t rows = minimum(linear, tile.rows - skipped);
    return {offset, view.step, view.channel, skipped * tile.columns, rows, tile.columns};
  }
  return {offset, view.channel, view.step, skipped, tile.rows, minimum(linear, tile.columns - skipped)};
}

template <class F>
static void for_each_piece(const View& view, const Grid& grid, const Tile& tile, F f) {
  const std::int64_t positions = grid.channels_inner ? tile.rows : tile.columns;
  for (std::int64_t skipped = 0; skipped < positions;) {
    const Piece piece = piece_at(view, grid, tile, skipped);
    f(piece);
    skipped += grid.channels_inner ? piece.rows : piece.columns;
  }
}

template <class Element>
struct Strided {
  Element* data;
  std::int64_t row_stride, column_stride;
};
template <class Element>
Strided(Element*, std::int64_t, std::int64_t) -> Strided<Element>;

template <class From, class To>
static void copy(Strided<From> from, Strided<To> to, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t row = 0; row < rows; ++row) {
    From* const source = from.data + row * from.row_stride;
    To* const target = to.data + row * to.row_stride;
    if (from.column_stride == 1 && to.column_stride == 1) {
#pragma omp simd
      for (std::int64_t column = 0; column < columns; ++column) {
        encode(decode(source[column]), target[column]);
      }
    } else {
      for (std::int64_t column = 0; column < columns; ++column) {
        encode(decode(source[column * from.column_stride]), target[column * to.column_stride]);
      }
    }
  }
}

// Copies a piece with the inner loop along the dimension that is denser in the tensor.
template <class From, class To>
static void copy_piece(const Piece& piece, Strided<From> from, Strided<To> to) {
  if (piece.column_stride != 1 && piece.row_stride < piece.column_stride) {
    copy(Strided{from.data, from.column_stride, from.row_stride}, Strided{to.data, to.column_stride, to.row_stride},
         piece.columns, piece.rows);
  } else {
    copy(from, to, piece.rows, piece.columns);
  }
}

// The rows of a tile, each contiguous.
template <class T>
struct Rows {
  T* data;
  std::int64_t stride;

  T* operator[](std::int64_t row) const { return data + row * stride; }
};

// What a loop runs along: the rows of a tile, or all of them as one if they lie one after the other.
struct Lines {
  std::int64_t count, length;
};

template <class... Each>
static Lines lines_of(const Tile& tile, const Each&... rows) {
  const bool joined = ((rows.stride == tile.columns) && ...);
  return joined ? Lines{1, size(tile)} : Lines{tile.rows, tile.columns};
}

// Rows that lie apart end before the CPU sees that they are read one after the other, so it is told two rows ahead.
template <class T>
LADDER_FN void prefetch(const Rows<T>& rows, const Tile& tile, std::int64_t row) {
  constexpr std::int64_t ahead = 2, cache_line = 64 / sizeof(T);
  if (rows.stride == tile.columns) return;
  for (std::int64_t i = 0; i < tile.columns; i += cache_line) LADDER_PREFETCH(rows[row + ahead] + i);
}

template <class T>
static Rows<T> in_buffer(T* buffer, const Tile& tile) {
  return {buffer, tile.columns};
}

// Shorter rows that lie apart are copied together: a loop along one takes more time to begin than to run.
constexpr std::int64_t shortest_row = 64;

// The tile inside the tensor itself, if its rows are contiguous there and in the compute type; else no data.
template <class T>
static Rows<T> in_place(const View& view, const Grid& grid, const Tile& tile) {
  if (view.data == nullptr || view.dtype != dtype_of<T>) return {};
  const Piece piece = piece_at(view, grid, tile, 0);
  const bool whole = piece.rows == tile.rows && piece.columns == tile.columns;
  const bool contiguous = piece.column_stride == 1 || tile.columns == 1;
  const std::int64_t stride = tile.rows == 1 ? tile.columns : piece.row_stride;
  if (!whole || !contiguous || (stride != tile.columns && tile.columns < shortest_row)) return {};
  return {static_cast<T*>(view.data) + piece.offset, stride};
}

// The tile's elements: inside the tensor, in `buffer`, or zeros where there is no tensor.
template <class T>
static Rows<const T> read(const View& view, const Grid& grid, const Tile& tile, T* buffer) {
  alignas(64) static const T zeros[tile_size] = {};
  if (view.data == nullptr) return in_buffer(zeros, tile);
  if (const Rows<T> inside = in_place<T>(view, grid, tile); inside.data != nullptr) return {inside.data, inside.stride};
  with_storage_type(view.dtype, [&](auto storage) {
    const auto* const data = static_cast<const decltype(storage)*>(view.data);
    for_each_piece(view, grid, tile, [&](const Piece& piece) {
      copy_piece(piece, Strided{data + piece.offset, piece.row_stride, piece.column_stride},
                 Strided{buffer + piece.done, tile.columns, 1});
    });
  });
  return {buffer, tile.columns};
}

// Where the tile's elements are to be computed: inside the tensor, or in `buffer` for `write` to bring there.
template <class T>
static Rows<T> target(const View& view, const Grid& grid, const Tile& tile, T* buffer) {
  const Rows<T> inside = in_place<T>(view, grid, tile);
  return inside.data != nullptr ? inside : in_buffer(buffer, tile);
}

template <class T>
static void store(const View& view, const Grid& grid, const Tile& tile, const T* buffer) {
  with_storage_type(view.dtype, [&](auto storage) {
    auto* const data = static_cast<decltype(storage)*>(view.data);
    for_each_piece(view, grid, tile, [&](const Piece& piece) {
      copy_piece(piece, Strided{buffer + piece.done, tile.columns, 1},
                 Strided{data + piece.offset, piece.row_stride, piece.column_stride});
    });
  });
}

template <class T>
static void write(const View& view, const Grid& grid, const Tile& tile, const T* buffer) {
  if (view.data != nullptr && in_place<T>(view, grid, tile).data == nullptr) store(view, grid, tile, buffer);
}

}  // namespace ladder_kernels::cpu::LADDER_ISA
