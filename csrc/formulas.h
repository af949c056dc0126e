// The formulas of the step for one latent element, each once, for every compiled backend.
//
// The semantics, the grouping of terms and the NaN behaviour are those of ladder_kernels/backends/torch. Everything is
// written in terms of standard deviations or of their roots, so that nothing under- or overflows where the result does
// not, and with comparisons that a NaN fails, so that it stays one.
#pragma once

#include <limits>
#include <type_traits>

#include "math.h"

namespace ladder_kernels {

// Where z comes from: standard normal noise (given or Philox), a given z, or the mean.
enum class Draw { noise, latent, mode };

// Which divergence is computed or differentiated.
enum class KL { none, monte_carlo, analytic };

constexpr double half_log_two_pi = 0.918938533204672742;

// How a raw value r becomes a variance v or a std s.
enum class Variance {
  stable,    // v = exp(r) up to 0 and 1 + r above, plus the floor
  exp,       // v = exp(r)
  logstd,    // s = exp(r)
  softplus,  // s = log(1 + exp(beta r)) / beta, plus the floor
  stable_without_floor,  // v of `stable` underflows without a floor; in parts it does not
};

// The kind that a map's name and floor ask for.
LADDER_FN Variance with_floor(Variance kind, double floor) {
  return kind == Variance::stable && floor == 0 ? Variance::stable_without_floor : kind;
}

// Which parts a std = exp(exponent) * rest has; the other is 0 or 1. Without an exponent the logs of variances are
// rounded and their difference cancels; with one, stds may leave the range where their ratio does not.
template <Variance kind>
constexpr bool has_exponent = kind != Variance::stable;
template <Variance kind>
constexpr bool has_rest = kind != Variance::exp && kind != Variance::logstd;

// f(the kind, as a constant): for code that learns it at run time.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class F>
LADDER_FN auto with_variance(Variance kind, F f) {
  switch (kind) {
    case Variance::stable: return f(std::integral_constant<Variance, Variance::stable>{});
    case Variance::exp: return f(std::integral_constant<Variance, Variance::exp>{});
    case Variance::logstd: return f(std::integral_constant<Variance, Variance::logstd>{});
    case Variance::softplus: return f(std::integral_constant<Variance, Variance::softplus>{});
    default: return f(std::integral_constant<Variance, Variance::stable_without_floor>{});
  }
}

// What the raw value is clamped to, infinite where it is not; beta and the floor of the kinds that have them.
template <class T>
struct VarianceMap {
  T raw_min, raw_max, twice_beta, inverse_beta, floor;
};

template <class To, class From>
LADDER_FN VarianceMap<To> cast(VarianceMap<From> map) {
  return {static_cast<To>(map.raw_min), static_cast<To>(map.raw_max), static_cast<To>(map.twice_beta),
          static_cast<To>(map.inverse_beta), static_cast<To>(map.floor)};
}

// The map of N(0, I), which takes a raw value of 0 to variance 1 exactly. Most kinds do that by themselves; of a
// softplus clamped to minus infinity the floor is left.
LADDER_FN VarianceMap<double> unit_map(Variance kind) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const bool floor_alone = kind == Variance::softplus;
  return {-infinity, floor_alone ? -infinity : infinity, 2, 1, floor_alone ? 1.0 : 0.0};
}

// The variance is exp(var_exponent) * rest^2 (docs/design.md, section 2): a std may leave the range of T long before
// these parts do.
template <Variance kind, class T>
struct Gaussian {
  T mean;
  T std;
  T inverse_a, inverse_b;  // two factors of 1 / std
  T log_var;               // log of the variance
  T slope;                 // d log_var / d raw
  bool clamped;
  T var_exponent, rest, inverse_rest;  // read where the kind has both parts
};

// NaN stays NaN.
template <class T>
LADDER_FN T clamp(T raw, VarianceMap<T> map) {
  return math::maximum(math::minimum(raw, map.raw_max), map.raw_min);
}

// log of the std, where it is linear.
template <Variance kind, class T>
LADDER_FN T linear_log_std(T inside) {
  if constexpr (kind == Variance::stable_without_floor) return T(0.5) * math::minimum(inside, T(0));
  return kind == Variance::exp ? T(0.5) * inside : inside;
}

// The exponential in the variance, in the std, or a root of it. Apart from `gaussian`, so that a kernel may compute
// many before it goes on.
template <Variance kind, class T>
LADDER_FN T exponential(T raw, VarianceMap<T> map) {
  const T inside = clamp(raw, map);
  if constexpr (kind == Variance::stable) {
    return math::exp(math::minimum(inside, T(0)));
  } else if constexpr (kind == Variance::softplus) {
    return math::exp_of_product(T(-0.25), math::abs(map.twice_beta * inside));
  } else {
    return math::exp_beforehand(linear_log_std<kind>(inside));
  }
}

// s = log(1 + exp(beta r)) / beta + floor, with t = exp(-|beta r|) and its root. Below 0 it is exp(beta r) times the
// quotient log(1 + t) / t / beta, of which neither leaves the range; with a floor that does not matter.
template <class T>
LADDER_FN Gaussian<Variance::softplus, T> softplus_gaussian(T mean, T inside, T root, VarianceMap<T> map,
                                                            bool clamped) {
  const T twice = map.twice_beta * inside, t = root * root;
  const T quotient = math::log1p_quotient(t) * map.inverse_beta;
  const T std = math::maximum(inside, T(0)) + t * quotient + map.floor;
  const bool apart = twice < (map.floor > T(0) ? -std::numeric_limits<T>::infinity() : T(0));

  const T var_exponent = apart ? twice : T(0), rest = apart ? quotient : std;
  const T inverse_root = math::reciprocal(apart ? math::maximum(root, math::smallest_root(T())) : T(1));
  const T inverse_rest = math::reciprocal(rest), log_var = var_exponent - math::minus_two_log(rest);
  // Not the reciprocal of its half, which flushes to 0 where the smallest floor is all that is left of the std.
  const T slope = (twice < T(0) && !apart ? t + t : T(2)) * math::reciprocal(t * rest + rest);
  return {mean,    std,          inverse_root, inverse_root * inverse_rest, log_var, slope,
          clamped, var_exponent, rest,         inverse_rest};
}

// The variance map: the Gaussian of raw parameters.
template <Variance kind, class T>
LADDER_FN Gaussian<kind, T> gaussian(T mean, T raw, T exponential, VarianceMap<T> map) {
  const T inside = clamp(raw, map);
  const bool clamped = inside < raw || inside > raw;
  if constexpr (kind == Variance::stable) {
    const T variance = exponential + math::maximum(inside, T(0)) + map.floor;
    const T inverse_std = math::reciprocal_sqrt(variance), slope = exponential * inverse_std * inverse_std;
    return {mean, math::sqrt(variance), inverse_std, T(1), math::positive_log(variance), slope, clamped};
  } else if constexpr (kind == Variance::softplus) {
    return softplus_gaussian(mean, inside, exponential, map, clamped);
  } else {
    const auto [std, inverse_a, inverse_b] = math::exp_and_inverse(linear_log_std<kind>(inside), exponential);
    if constexpr (kind == Variance::stable_without_floor) {
      const T var_exponent = math::minimum(inside, T(0)), square = T(1) + math::maximum(inside, T(0));
      const T rest = math::sqrt(square), inverse_rest = math::reciprocal_sqrt(square);
      const T log_var = var_exponent + math::positive_log(square), slope = inverse_rest * inverse_rest;
      return {mean,    std * rest,   inverse_a, inverse_b * inverse_rest, log_var, slope,
              clamped, var_exponent, rest,      inverse_rest};
    }
    constexpr T slope = kind == Variance::exp ? 1 : 2;
    return {mean, std, inverse_a, inverse_b, slope * inside, slope, clamped};
  }
}

// log of the variance alone. Maps are monotone, so that of the largest raw value is the largest.
template <class T>
LADDER_FN T log_variance(Variance kind, T raw, VarianceMap<T> map) {
  return with_variance(kind, [=](auto known) {
    constexpr Variance kind = decltype(known)::value;
    return gaussian<kind>(T(0), raw, exponential<kind>(raw, map), map).log_var;
  });
}

template <Variance kind, class T>
LADDER_FN T over_std(T x, const Gaussian<kind, T>& gaussian) {
  return x * gaussian.inverse_a * gaussian.inverse_b;
}

// z, and its standardised residual eps = (z - mean) / std with the temperature included.
template <class T>
struct Latent {
  T eps, z;
};

template <Draw draw, Variance kind, class T>
LADDER_FN Latent<T> draw_latent(const Gaussian<kind, T>& q, T source, T temperature) {
  if constexpr (draw == Draw::latent) {
    return {over_std(source - q.mean, q), source};
  } else if constexpr (draw == Draw::noise) {
    const T eps = source * temperature;
    return {eps, math::multiply_add(q.std, eps, q.mean)};
  } else {
    return {T(0), q.mean};
  }
}

// log N(z) without its -1/2 log 2 pi, from the standardised residual of z.
template <Variance kind, class T>
LADDER_FN T log_density(T eps, const Gaussian<kind, T>& gaussian) {
  return T(-0.5) * (eps * eps + gaussian.log_var);
}

// vq / vp - 1, and that minus log(vq / vp) without cancellation where the variances are close.
template <class T>
struct VarianceRatio {
  T minus_one, excess;
};

template <Variance kind, class T>
LADDER_FN VarianceRatio<T> variance_ratio(const Gaussian<kind, T>& q, const Gaussian<kind, T>& p) {
  if constexpr (!has_exponent<kind>) {
    const T std_ratio = over_std(q.std, p), minus_one = (std_ratio - T(1)) * (std_ratio + T(1));
    return {minus_one, math::excess_over_log(minus_one, std_ratio, std_ratio, T(0))};
  } else if constexpr (has_rest<kind>) {
    const T apart = q.var_exponent - p.var_exponent, rest_ratio = q.rest * p.inverse_rest;
    const T std_ratio = math::exp_of_product(T(0.5), apart) * rest_ratio;
    const T minus_one = (std_ratio - T(1)) * (std_ratio + T(1));
    return {minus_one, math::excess_over_log(minus_one, std_ratio, rest_ratio, apart)};
  } else {
    // Near one expm1 keeps what the exponential loses.
    const T log = q.log_var - p.log_var;
    const T minus_one = log * log < T(0.25) ? math::expm1_near_zero(log) : math::exp(log) - T(1);
    return {minus_one, minus_one - log};
  }
}

template <KL kl, Variance kind, class T>
LADDER_FN T divergence(const Gaussian<kind, T>& q, const Gaussian<kind, T>& p, Latent<T> latent) {
  const T residual = over_std((kl == KL::analytic ? q.mean : latent.z) - p.mean, p);
  if constexpr (kl == KL::analytic) {
    return T(0.5) * (variance_ratio(q, p).excess + residual * residual);
  } else {
    return log_density(latent.eps, q) - log_density(residual, p);
  }
}

// Gradients that arrive at one element: of z, and half of those of its KL and of log q(z); zero where not used. Halved
// first, they meet squares without a product that overflows where the result does not.
template <class T>
struct IncomingGradients {
  T z, half_kl, half_log_q;
};

// With respect to the raw parameters and to a given latent.
template <class T>
struct StepGradients {
  T q_mean, q_raw, p_mean, p_raw, latent;
};

// From the gradient of the log of the variance on to that of the raw value; 0 where it was clamped.
template <Variance kind, class T>
LADDER_FN T to_raw(T grad_log_var, const Gaussian<kind, T>& gaussian) {
  return gaussian.clamped ? T(0) : grad_log_var * gaussian.slope;
}

// Where neither z nor, for a given latent, log q(z) has an incoming gradient, `draw` is to be the mode: nothing flows
// through eps then, and an infinite eps or std must not make NaN of a gradient of 0.
template <Draw draw, KL kl, Variance kind, class T>
LADDER_FN StepGradients<T> step_gradients(const Gaussian<kind, T>& q, const Gaussian<kind, T>& p, T source, T temperature,
                                          IncomingGradients<T> incoming) {
  const Latent<T> latent = draw_latent<draw>(q, source, temperature);
  // -0: a compiler drops an addition to it, but not one to 0.
  StepGradients<T> grads{T(-0.0)};
  T to_z = incoming.z, half_to_log_q = incoming.half_log_q, to_q_log_var = T(-0.0);

  if constexpr (kl != KL::none) {
    const T residual = over_std(p.mean - (kl == KL::analytic ? q.mean : latent.z), p);
    const T half_to_residual = incoming.half_kl * residual;
    grads.p_mean = over_std(half_to_residual + half_to_residual, p);
    if constexpr (kl == KL::analytic) {
      grads.q_mean -= grads.p_mean;
      to_q_log_var = incoming.half_kl * variance_ratio(q, p).minus_one;
      grads.p_raw = to_raw(-to_q_log_var - half_to_residual * residual, p);
    } else {
      to_z -= grads.p_mean;
      half_to_log_q += incoming.half_kl;
      grads.p_raw = to_raw(incoming.half_kl - half_to_residual * residual, p);
    }
  }

  if constexpr (draw == Draw::latent) {
    // z is an input: log q depends on it, on the mean and on the std through eps = (z - mean) / std.
    const T half_to_eps = half_to_log_q * latent.eps, score = over_std(half_to_eps + half_to_eps, q);
    grads.q_mean += score;
    to_z -= score;
    to_q_log_var += half_to_eps * latent.eps - half_to_log_q;
    grads.latent = to_z;
  } else {
    // z = mean + std eps: eps is a constant, so log q depends on the std alone.
    grads.q_mean += to_z;
    if constexpr (draw == Draw::noise) to_q_log_var += math::half_of_product(to_z, latent.eps, q.std);
    to_q_log_var -= half_to_log_q;
  }
  grads.q_raw = to_raw(to_q_log_var, q);
  return grads;
}

}  // namespace ladder_kernels
