// The compiled kernels as a plain C library: libladder_kernels_cpu and libladder_kernels_cuda have the same functions.
// It knows no tensors, no Python and no autograd: ladder_kernels/backends/native.py checks and describes tensors,
// allocates, and passes addresses. ladder_kernels/backends/step.py says what the fields and arguments mean.
//
// A description may be used by many threads at once; nothing here writes to it or keeps anything of a call.
#ifndef LADDER_KERNELS_H
#define LADDER_KERNELS_H

#include <stdint.h>

// That of the package, ladder_kernels/__init__.py, which loads no library of another one.
#define LADDER_VERSION "0.1.0"

#pragma GCC visibility push(default)
#if defined(__cplusplus)
extern "C" {
#endif

// A tensor (B, C, *S), or a sum over some of these dims. Strides count elements: of batch, channels, and the three dims
// of space, aligned right. They are 0 in a dim that the tensor does not have, or has once for all.
typedef struct {
  int64_t dtype;    // 0: there is none; 1 to 4: float16, bfloat16, float32, float64
  int64_t aligned;  // whether its address is a multiple of 16
  int64_t strides[5];
} LadderTensor;

// A step, as far as it is no memory. Of packed parameters (B, 2C, *S) the strides are given. What a step makes is
// dense, in its element order.
typedef struct {
  int64_t batch, channels, space[3];  // of the latent; space aligned right, 1 where there is no such dim
  int64_t channels_last;              // element order of what is made, and of the noise of a seed
  int64_t draw, kl, variance;         // in the order of `enum class` Draw, KL, Variance in formulas.h
  int64_t philox;                     // the noise is that of a seed, an int64_t to which `source` points
  int64_t in_double;                  // computed in float64, and so are the sums
  int64_t shared_p;                   // p has batch 1 and q has not: its gradient is summed over the batch
  int64_t window[4];                  // of the restricted KL: rows and columns [start, stop) of the last two dims
  double raw_min, raw_max, beta, floor, temperature;
  LadderTensor q, p, source;
  // The gradients that arrive; those of sums are in the dtype of the sums.
  LadderTensor grad_z, grad_samplewise, grad_restricted, grad_channelwise, grad_spatial, grad_log_q, grad_elementwise;
} LadderStep;

// Where a call runs: on a CPU the number of threads, on a GPU the stream.
typedef uintptr_t LadderQueue;

const char* ladder_version(void);

// What a code says that is not 0.
const char* ladder_error(int code);

// How many bytes of scratch memory, aligned to 16, a call wants, or a negative code. On a CPU none: it takes its own.
int64_t ladder_forward_scratch(const LadderStep* step);
int64_t ladder_backward_scratch(const LadderStep* step);

// Each returns 0 or a code. There is at least one element. A null pointer is a tensor that is not there or not wanted;
// those that are made are aligned.

int ladder_forward(const LadderStep* step, const void* q, const void* p, const void* source, void* z,
                   void* kl_samplewise, void* kl_samplewise_restricted, void* kl_channelwise, void* kl_spatial,
                   void* logprob_q, void* logvar_max, void* kl_elementwise, void* scratch, LadderQueue queue);

// Something flows through the variances of q: else there is nothing to compute.
int ladder_backward(const LadderStep* step, const void* q, const void* p, const void* source, const void* grad_z,
                    const void* grad_samplewise, const void* grad_restricted, const void* grad_channelwise,
                    const void* grad_spatial, const void* grad_log_q, const void* grad_elementwise, void* grad_q,
                    void* grad_p, void* grad_latent, void* scratch, LadderQueue queue);

// z alone, without a KL.
int ladder_sample(const LadderStep* step, const void* q, const void* source, void* z, LadderQueue queue);

// Of the CPU alone: `count` numbers, at least 16, of torch.randn in float32. `state` is what torch.Generator.get_state()
// gives, and becomes what it would give afterwards. Returns 1, and changes nothing, where it is no such state.
int ladder_normal(void* state, float* out, int64_t count, LadderQueue threads);

#if defined(__cplusplus)
}
#endif
#pragma GCC visibility pop
#endif
