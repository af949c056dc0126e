// What a kernel is told: plain data. And the kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <initializer_list>

#include "../latent.h"

namespace ladder_kernels::cuda {

// A number that the device divides by: a division takes a GPU some twenty instructions, this takes three. The quotient
// is (n + n * multiplier / 2^32) / 2^shift.
struct Divisor {
  Divisor(int value = 1) : value(value < 1 ? 1 : value) {
    const std::uint64_t one = 1, divisor = static_cast<std::uint64_t>(this->value);
    while (one << shift < divisor) ++shift;
    multiplier = static_cast<std::uint32_t>(((((one << shift) - divisor) << 32) / divisor) + 1);
  }

  int value;
  std::uint32_t multiplier;
  int shift = 0;
};

// Of n >= 0.
LADDER_FN int operator/(int n, const Divisor& divisor) {
  const std::uint64_t high = math::wide_product(static_cast<std::uint32_t>(n), divisor.multiplier) >> 32;
  return static_cast<int>((static_cast<std::uint32_t>(n) + static_cast<std::uint32_t>(high)) >> divisor.shift);
}
LADDER_FN int operator%(int n, const Divisor& divisor) { return n - n / divisor * divisor.value; }

// A tensor (B, C, *S), or packed parameters with `half` from means to raw values. Strides count elements; those of
// space are the collapsed dims', aligned right. A sum over some dims is a view too, with stride 0 in them.
struct View {
  void* data = nullptr;  // null: not there; reads as zeros, writes go nowhere
  Dtype dtype = Dtype::float32;
  std::int64_t batch = 0, half = 0, channel = 0, space[3] = {0, 0, 0};
  int row_bytes = 0;  // between rows; only where `tiles.width` is that of vectors
};

// A `LatentShape` in the integers that a GPU is fast with.
struct Grid {
  int batch, rows, columns;
  bool channels_inner;    // columns are channels
  int space_dims;         // dims left of space once neighbours have been merged wherever all strides allow it
  int space[3];           // their sizes, aligned right
  Divisor height, width;  // the last two of them
};

// A block of threads takes `turns` tiles of one sample, down the rows: `rows` rows of `lanes` threads (a power of
// two), each with `width` columns. All of it depends on shapes and strides alone, and so do the sums.
struct Tiles {
  int width, rows, turns;
  Divisor lanes, row_blocks, column_blocks;
};

// A thread's columns: two sixteen-byte words of float32, one of 16-bit elements, two Philox blocks; or, where words do
// not serve, single elements.
constexpr int vector_width = 8, single_width = 4;
// A tile is no wider, so that a warp has several rows: their sums take fewer steps, and a tensor whose neighbours in
// memory are those down the rows has its sectors used by one warp.
constexpr int max_columns = 64;
constexpr int warp_size = 32, max_threads = 128;

LADDER_FN int blocks_per_sample(const Tiles& tiles) { return tiles.row_blocks.value * tiles.column_blocks.value; }

template <class T>
struct Parameters {
  VarianceMap<T> q_map, p_map;
  T temperature;
};

struct Step {
  Grid grid;
  View q, p;
  View source;               // noise or latent
  const std::int64_t* seed;  // or null
  Draw draw;
  KL kl;
  Variance variance;
  bool computed_in_double;
  Parameters<float> in_float;
  Parameters<double> in_double;
};

LADDER_FN const Parameters<float>& parameters(const Step& step, float) { return step.in_float; }
LADDER_FN const Parameters<double>& parameters(const Step& step, double) { return step.in_double; }

// Rows and columns [start, stop) of the last two dims, and these dims' sizes.
struct Window {
  int row_start, row_stop, column_start, column_stop;
  Divisor height, width;
};

struct Forward {
  Step step;
  Tiles tiles;
  bool has_window;
  Window window;
  View z, kl;
  // What blocks leave to be added up: `BlockSums` (batch, row blocks, column blocks); and of the KL, if there is one, row
  // sums (column blocks, batch, rows) and column sums (row blocks, batch, columns).
  void *block_sums, *row_sums, *column_sums;
};

// A block's KL, restricted KL, log q without constants, and largest raw value.
template <class T>
struct alignas(4 * sizeof(T)) BlockSums {
  T kl, restricted, log_q, largest_raw;
};

// Where the sums go, each contiguous and in the compute dtype; null where there is none.
struct Sums {
  void *samplewise, *restricted, *row_sums, *column_sums, *logprob_q, *logvar_max;
};

struct Backward {
  Step step;
  Tiles tiles;
  bool has_window;
  Window window;
  View grad_z, grad_elementwise;
  View grad_samplewise, grad_restricted, grad_channelwise, grad_spatial, grad_log_q;  // in the compute dtype
  View grad_q, grad_p, grad_latent;
};

struct Sample {
  Step step;
  Tiles tiles;
  View z;
};

// The kernels, put on a stream. Which variant serves is decided by `tiles.width`.
void launch_forward(const Forward& call, cudaStream_t stream);

// Adds up what blocks of `launch_forward` left.
void launch_sums(const Forward& call, const Sums& out, cudaStream_t stream);

// p's gradient is summed over the batch if `shared_p`.
void launch_backward(const Backward& call, bool shared_p, cudaStream_t stream);

void launch_sample(const Sample& call, cudaStream_t stream);

// ---- From a `LadderStep` to a plan.

// Instead of a cudaError_t, which is never negative.
constexpr int too_large = -1;

// Whether one launch can count the step's elements.
bool fits(const LadderStep& step);

// Space is not collapsed yet, here and in views.
Step step_of(const LadderStep& given, const void* q, const void* p, const void* source);

Window window_of(const std::int64_t (&window)[4], const Grid& grid);

View view_of(const void* data, const LadderTensor& tensor);

// Of packed parameters.
View packed_view(const void* data, const LadderTensor& packed, const LadderStep& step);

// Merges neighbouring dims of space wherever all of `views`, which are all there are, allow it.
void collapse_space(Grid& grid, std::initializer_list<View*> views);

// Kinds with vector kernels: nobody trains with the other, whose would be a quarter more.
constexpr bool is_hot(Variance kind) { return kind != Variance::stable_without_floor; }

// Whether vector kernels serve: everything can be read and written in sixteen-byte words, in q's dtype or, of noise and
// `in_float`, in float32. Prepares the views for that.
bool take_vectors(Step& step, std::initializer_list<View*> like_q, std::initializer_list<View*> in_float = {});

// `width` columns a thread and at most `most_turns` tiles a block.
Tiles tiles_of(const Grid& grid, int width, int most_turns);

// How much memory `set_partials` shares out, aligned to sixteen bytes.
std::int64_t partials_bytes(const Step& step, const Tiles& tiles);
void set_partials(Forward& call, void* memory);

}  // namespace ladder_kernels::cuda
