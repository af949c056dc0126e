// What a kernel is told: plain data, so that it is the same for every instruction set. And the kernels of each.
#pragma once

#include <cstddef>
#include <cstdlib>

#include "../latent.h"

namespace ladder_kernels::cpu {

// A tensor (B, C, *S), or one half of packed parameters. Strides count elements.
struct View {
  void* data = nullptr;  // null: not there; reads as zeros, writes go nowhere
  Dtype dtype = Dtype::float32;
  std::int64_t batch = 0, channel = 0, space[3] = {0, 0, 0};
  // Positions are linear, `step` apart, in runs of this length.
  std::int64_t run = 1, step = 0;
};

// A tile is worked on at a time: some whole rows, or a piece of one row, either way contiguous in z. A unit, some rows
// of tiles, is what a thread takes and what partial sums belong to. Both depend on the shape alone, and so do the sums.
struct Grid : LatentShape {
  std::int64_t tile_rows, tile_columns, unit_rows;
  std::int64_t row_blocks, column_blocks;  // units of one sample
};

// Elements of the largest tile: its buffers fit the L2 cache, and the runs that it reads are long enough for the CPU to
// prefetch them.
constexpr std::int64_t tile_size = 4096;

struct Step {
  Grid grid;
  View q_mean, q_raw, p_mean, p_raw;
  View source;  // noise or latent
  Draw draw;
  KL kl;
  Variance variance;
  bool in_double;
  bool philox;  // noise of `seed` instead of `source`
  std::uint64_t seed;
  double temperature;
  VarianceMap<double> q_map, p_map;
};

struct Forward {
  Step step;
  View z, kl;
  // Partial sums of the KL: of each row (batch, column_blocks, rows), of each column (batch, row_blocks, columns).
  double *row_sums, *column_sums;
  // Of each unit: sum of log q without its -1/2 log 2 pi, and largest raw value of q. Null: z alone is wanted.
  double *log_q, *largest_raw;
};

struct Backward {
  Step step;
  View grad_z, grad_kl;  // of z and of the elementwise KL
  // Gradient of the KL that all positions of a channel share (batch, channels), and all channels of a position
  // (batch, positions) or null; of log q (batch,).
  const double *by_channel, *by_position, *log_q;
  StepGradients<View> grads;
  // Instead of p's views where p has batch 1: its gradients (1, C, *S), summed over the batch.
  View p_mean_total, p_raw_total;
  bool shared_p;
};

// Words of the Mersenne twister that are made at a time.
constexpr std::int64_t twister_size = 624;

// Forward and backward work on units [begin, end) of the grid in the calling thread, and want `scratch_size` bytes to do
// it. Of the other two kernels/noise.h says what they do.
struct Kernels {
  void (*forward)(const Forward&, std::int64_t begin, std::int64_t end, void* scratch);
  void (*backward)(const Backward&, std::int64_t begin, std::int64_t end, void* scratch);
  std::size_t scratch_size;
  void (*twist)(std::uint32_t* words);
  void (*normal)(float* data, std::int64_t groups);
};

// GCC alone can compile a whole file for another instruction set from within it.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LADDER_X86 1
extern const Kernels avx2_kernels, avx512_kernels;
#endif
extern const Kernels baseline_kernels;

// Those for this CPU.
const Kernels& kernels();

// ---- From a `LadderStep` to a plan, and from plans to the kernels of this CPU.

Grid grid_of(const LadderStep& step);

std::int64_t units_per_sample(const Grid& grid);

Step step_of(const LadderStep& given, const void* q, const void* p, const void* source);

// A latent-shaped tensor (B, C, *S).
View view_of(const void* data, const LadderTensor& tensor, const Grid& grid);

// Half 0, means, or half 1, raw values, of packed parameters.
View half_view(const void* data, const LadderTensor& packed, int half, const Grid& grid);

enum Code { done, no_memory };

// Memory of a call for `count` doubles, freed with the call. Not a vector: an exception must not leave the library.
class Doubles {
 public:
  explicit Doubles(std::int64_t count) : data(static_cast<double*>(std::malloc(count * sizeof(double)))) {}
  Doubles(const Doubles&) = delete;
  ~Doubles() { std::free(data); }

  double* const data;  // null if there is not enough
};

// The first `units` units, on so many threads. Returns a `Code`.
int run(const Forward& call, std::int64_t units, LadderQueue threads);
int run(const Backward& call, std::int64_t units, LadderQueue threads);

}  // namespace ladder_kernels::cpu
