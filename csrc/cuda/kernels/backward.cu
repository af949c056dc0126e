// The packed gradients of q and p, and that of a given latent, in one pass.
#include "launch.cuh"

namespace ladder_kernels::cuda {
namespace {

template <class Access, class T = typename Access::T>
__device__ T load_sum(const Grid& grid, const View& view, std::int64_t sample, int row, int column) {
  constexpr bool collapsed = Access::width > 1;
  if (view.data == nullptr) return T(0);
  const std::int64_t offset = sample * view.batch + row_offset<collapsed>(grid, view, row) +
                              column_offset<collapsed>(grid, view, column);
  return static_cast<const T*>(view.data)[offset];
}

// The gradients that arrive at a thread's columns of one sample, those of log q and of the KL halved. Those of the KL's
// sums come in two parts: what all rows share is read once.
template <class Access>
struct Incoming {
  using T = typename Access::T;
  static constexpr int width = Access::width;

  const Backward& call;
  const Grid& grid;
  typename Access::Columns z;
  typename Access::FloatColumns elementwise;
  std::int64_t sample;
  T half_log_q, restricted, half_by_column[width];

  __device__ Incoming(const Backward& call, const Place& place)
      : call(call),
        grid(call.step.grid),
        z(grid, call.grad_z, place),
        elementwise(grid, call.grad_elementwise, place),
        sample(place.sample),
        half_log_q(T(0.5) * load_sum<Access>(grid, call.grad_log_q, sample, 0, 0)),
        restricted(load_sum<Access>(grid, call.grad_restricted, sample, 0, 0)) {
    const T samplewise = load_sum<Access>(grid, call.grad_samplewise, sample, 0, 0);
    const View& over_rows = grid.channels_inner ? call.grad_channelwise : call.grad_spatial;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const int column = place.template column_of<Access::vector>(i);
      T by_column = samplewise + load_sum<Access>(grid, over_rows, sample, 0, column);
      if (!grid.channels_inner) by_column += in_window(column);
      half_by_column[i] = T(0.5) * by_column;
    }
  }

  __device__ Values<T, width> load_z(int row) const {
    return call.grad_z.data == nullptr ? Values<T, width>{} : z.load(row);
  }

  __device__ Values<T, width> load_half_kl(int row) const {
    T by_row = load_sum<Access>(grid, grid.channels_inner ? call.grad_spatial : call.grad_channelwise, sample, row, 0);
    if (grid.channels_inner) by_row += in_window(row);
    const T half_by_row = T(0.5) * by_row;
    Values<T, width> kl = call.grad_elementwise.data == nullptr ? Values<T, width>{} : elementwise.load(row);
#pragma unroll
    for (int i = 0; i < width; ++i) kl.at[i] = T(0.5) * kl.at[i] + (half_by_row + half_by_column[i]);
    return kl;
  }

 private:
  __device__ T in_window(int position) const {
    return call.has_window && inside(call.window, position) ? restricted : T(0);
  }
};

template <class Path, class T>
__device__ StepGradients<T> backward_element(const Step& step, T q_mean, T q_raw, T p_mean, T p_raw, T source,
                                             IncomingGradients<T> incoming) {
  return Path::with(step, [&](auto options) {
    using Options = decltype(options);
    const Parameters<T>& use = parameters(step, T());
    const auto q = gaussian_of<Options::variance>(q_mean, q_raw, use.q_map);
    const auto p = gaussian_of<Options::variance>(p_mean, p_raw, use.p_map);
    return step_gradients<Options::draw, Options::kl>(q, p, source, use.temperature, incoming);
  });
}

// A thread's columns of one sample: reads, computes, and writes all but p's gradients, which it returns.
template <class Access, class Path>
class BackwardColumns {
 public:
  using T = typename Access::T;
  static constexpr int width = Access::width;

  __device__ BackwardColumns(const Backward& call, const Place& place)
      : call(call),
        in(call.step, place),
        incoming(call, place),
        q_mean(call.step.grid, call.grad_q, place, 0),
        q_raw(call.step.grid, call.grad_q, place, 1),
        latent(call.step.grid, call.grad_latent, place) {}

  __device__ Packed<T, width> run(int row) const {
    const auto q = in.load_q(row), p = in.load_p(row);
    const auto source = in.load_source(row), grad_z = incoming.load_z(row), half_grad_kl = incoming.load_half_kl(row);
    Packed<T, width> to_q, to_p;
    Values<T, width> to_latent;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const StepGradients<T> grads =
          backward_element<Path>(call.step, q.mean.at[i], q.raw.at[i], p.mean.at[i], p.raw.at[i], source.at[i],
                                 {grad_z.at[i], half_grad_kl.at[i], incoming.half_log_q});
      to_q.mean.at[i] = grads.q_mean;
      to_q.raw.at[i] = grads.q_raw;
      to_p.mean.at[i] = grads.p_mean;
      to_p.raw.at[i] = grads.p_raw;
      to_latent.at[i] = grads.latent;
    }
    if (call.grad_q.data != nullptr) {
      q_mean.store(row, to_q.mean);
      q_raw.store(row, to_q.raw);
    }
    if (Path::may_be_given && call.grad_latent.data != nullptr) latent.store(row, to_latent);
    return to_p;
  }

 private:
  const Backward& call;
  Inputs<Access, Path> in;
  Incoming<Access> incoming;
  typename Access::Columns q_mean, q_raw, latent;
};

// The second bound leaves a thread 128 registers: without it, some variants get by with fewer and spill. Softplus, which
// would spill two of them, has 168.
template <class Access, class Path>
__global__ void __launch_bounds__(max_threads, Path::needs_registers ? 3 : 4)
    backward_kernel(const __grid_constant__ Backward call) {
  const Grid& grid = call.step.grid;
  const Place place = place_of<Access::width, Access::vector>(grid, call.tiles, blockIdx.x, threadIdx.x);
  if (!place.has_columns) return;
  const BackwardColumns<Access, Path> columns(call, place);
  const typename Access::Columns p_mean(grid, call.grad_p, place, 0), p_raw(grid, call.grad_p, place, 1);

  for (int step = 0; step < call.tiles.steps; ++step) {
    const int row = place.row + step * call.tiles.rows;
    if (row >= grid.rows) return;
    const auto to_p = columns.run(row);
    if (call.grad_p.data != nullptr) {
      p_mean.store(row, to_p.mean);
      p_raw.store(row, to_p.raw);
    }
  }
}

// p has batch 1: a thread takes one tile of every sample in turn and sums p's gradients over them.
template <class Access>
__global__ void __launch_bounds__(max_threads, 4) backward_shared_kernel(const __grid_constant__ Backward call) {
  using T = typename Access::T;
  const Grid& grid = call.step.grid;
  Place place = place_of<Access::width, Access::vector>(grid, call.tiles, blockIdx.x, threadIdx.x);
  if (!place.has_columns || place.row >= grid.rows) return;
  const typename Access::Columns p_mean(grid, call.grad_p, place, 0), p_raw(grid, call.grad_p, place, 1);
  T mean = 0, raw = 0;
  for (place.sample = 0; place.sample < grid.batch; ++place.sample) {
    const auto to_p = BackwardColumns<Access, AnyPath>(call, place).run(place.row);
    mean += to_p.mean.at[0];
    raw += to_p.raw.at[0];
  }
  p_mean.store(place.row, {mean});
  p_raw.store(place.row, {raw});
}

}  // namespace

void launch_backward(const Backward& call, bool shared_p, cudaStream_t stream) {
  const std::int64_t blocks = blocks_per_sample(call.tiles) * (shared_p ? 1 : call.step.grid.batch);
  const int threads = threads_of(call.tiles);
  if (call.tiles.width == 1) {
    return with_singles(call.step, [&](auto access) {
      using Access = decltype(access);
      launch(shared_p ? backward_shared_kernel<Access> : backward_kernel<Access, AnyPath>, blocks, threads, stream, call);
    });
  }
  with_vectors(call.step.q.dtype, [&](auto access) {
    with_hot_path(call.step, [&](auto path) {
      launch(backward_kernel<decltype(access), decltype(path)>, blocks, threads, stream, call);
    });
  });
}

}  // namespace ladder_kernels::cuda
