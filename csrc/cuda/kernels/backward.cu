// The packed gradients of q and p, and that of a given latent, in one pass.
#include "launch.cuh"

namespace ladder_kernels::cuda {
namespace {

// Of one sample; 0 where there is none.
template <class T>
__device__ T load_sum(const View& view, int sample, std::int64_t offset = 0) {
  return view.data == nullptr ? T(0) : static_cast<const T*>(view.data)[sample * view.batch + offset];
}

// The gradients that arrive at a thread's columns of one sample, those of log q and of the KL halved. Those of the KL's
// sums come in two parts: what all rows share is read once.
template <class Access, class Path>
struct Incoming {
  using T = typename Access::T;
  static constexpr int width = Access::width;
  static constexpr bool collapsed = width > 1;

  const Backward& call;
  const Grid& grid;
  typename Access::Columns z;
  typename Access::FloatColumns elementwise;
  int sample;
  T half_log_q, restricted, half_by_column[width];

  __device__ Incoming(const Backward& call, const Place& place)
      : call(call),
        grid(call.step.grid),
        z(grid, call.grad_z, place),
        elementwise(grid, call.grad_elementwise, place),
        sample(place.sample),
        half_log_q(T(0.5) * load_sum<T>(call.grad_log_q, sample)),
        restricted(load_sum<T>(call.grad_restricted, sample)) {
    const View& over_rows = grid.channels_inner ? call.grad_channelwise : call.grad_spatial;
    const T samplewise = load_sum<T>(call.grad_samplewise, sample);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const int column = min(place.template column_of<Access::vector>(i), grid.columns - 1);
      T by_column = samplewise + load_sum<T>(over_rows, sample, column_offset<collapsed>(grid, over_rows, column));
      if (!grid.channels_inner) by_column += in_window(column);
      half_by_column[i] = T(0.5) * by_column;
    }
  }

  __device__ Values<T, width> load_z(int row) const {
    return call.grad_z.data == nullptr ? Values<T, width>{} : z.load(row);
  }

  __device__ Values<T, width> load_half_kl(int row) const {
    if (!Path::has_kl(call.step)) return {};
    const View& over_columns = grid.channels_inner ? call.grad_spatial : call.grad_channelwise;
    T by_row = load_sum<T>(over_columns, sample, row_offset<collapsed>(grid, over_columns, row));
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

template <class Path, class Options, class T>
__device__ __forceinline__ StepGradients<T> backward_element(const Parameters<T>& use, T q_mean, T q_raw, T p_mean,
                                                             T p_raw, T source, IncomingGradients<T> incoming) {
  const auto q = gaussian_of<Options::variance>(q_mean, q_raw, use.q_map);
  const auto p = prior_of<Path, Options::variance>(p_mean, p_raw, use.p_map);
  return step_gradients<Options::draw, Options::kl>(q, p, source, use.temperature, incoming);
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
    Path::with(call.step, [&](auto options) {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const StepGradients<T> grads = backward_element<Path, decltype(options)>(
            in.parameters, q.mean.at[i], q.raw.at[i], p.mean.at[i], p.raw.at[i], source.at[i],
            {grad_z.at[i], half_grad_kl.at[i], incoming.half_log_q});
        to_q.mean.at[i] = grads.q_mean;
        to_q.raw.at[i] = grads.q_raw;
        to_p.mean.at[i] = grads.p_mean;
        to_p.raw.at[i] = grads.p_raw;
        to_latent.at[i] = grads.latent;
      }
    });
    if (call.grad_q.data != nullptr) {
      q_mean.store(row, to_q.mean);
      q_raw.store(row, to_q.raw);
    }
    if (Path::latent && call.grad_latent.data != nullptr) latent.store(row, to_latent);
    return to_p;
  }

 private:
  const Backward& call;
  Inputs<Access, Path> in;
  Incoming<Access, Path> incoming;
  typename Access::Columns q_mean, q_raw, latent;
};

// `shared_p`: p has batch 1; a thread takes its one tile of every sample in turn and sums p's gradients over them.
//
// The second bound leaves a thread 128 registers, where words are read and written: without it, some variants get by
// with fewer and spill. Softplus, which would spill two of them, has 168.
template <class Access, class Path, bool shared_p>
__global__ void __launch_bounds__(max_threads, Access::ragged ? Access::blocks : Path::softplus ? 3 : 4)
    backward_kernel(const __grid_constant__ Backward call) {
  using T = typename Access::T;
  constexpr int width = Access::width;
  const Grid& grid = call.step.grid;
  Place place = place_of<Access>(grid, call.tiles, blockIdx.x, threadIdx.x);
  if (!place.has_columns || place.row >= grid.rows) return;
  const typename Access::Columns p_mean(grid, call.grad_p, place, 0), p_raw(grid, call.grad_p, place, 1);
  const auto store_p = [&](int row, const Packed<T, width>& to_p) {
    if (call.grad_p.data == nullptr) return;
    p_mean.store(row, to_p.mean);
    p_raw.store(row, to_p.raw);
  };

  if constexpr (shared_p) {
    Packed<T, width> sum{};
    for (; place.sample < grid.batch; ++place.sample) {
      const auto to_p = BackwardColumns<Access, Path>(call, place).run(place.row);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        sum.mean.at[i] += to_p.mean.at[i];
        sum.raw.at[i] += to_p.raw.at[i];
      }
    }
    store_p(place.row, sum);
  } else {
    const BackwardColumns<Access, Path> columns(call, place);
    for (int turn = 0; turn < call.tiles.turns; ++turn) {
      const int row = place.row + turn * call.tiles.rows;
      if (row >= grid.rows) return;
      store_p(row, columns.run(row));
    }
  }
}

}  // namespace

void launch_backward(const Backward& call, bool shared_p, cudaStream_t stream) {
  const int blocks = blocks_per_sample(call.tiles) * (shared_p ? 1 : call.step.grid.batch);
  const auto put = [&](auto access, auto path) {
    using Access = decltype(access);
    using Path = decltype(path);
    auto kernel = backward_kernel<Access, Path, false>;
    if constexpr (Path::may_have_p) {
      if (shared_p) kernel = backward_kernel<Access, Path, true>;
    }
    launch(kernel, blocks, threads_of(call.tiles), stream, call);
  };
  if (call.tiles.width == single_width) return with_singles(call.step, [&](auto access) { put(access, AnyPath{}); });
  with_vectors(call.step.q.dtype, [&](auto access) {
    with_hot_path(call.step, [&](auto path) { put(access, path); });
  });
}

}  // namespace ladder_kernels::cuda
