// Elementary functions of the step, for float and double, on the host and on the device.
//
// The host's float versions have no branch and no table, so that loops over them vectorise; those of double are libm's.
// "ulp" beside each is the largest error over every float of the stated range, measured against double with and without
// fused multiply-add.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// Internal linkage: csrc/cpu compiles these functions for several instruction sets, and the linker must not merge them.
#if defined(__CUDACC__)
#define LADDER_FN static __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define LADDER_FN static inline __attribute__((always_inline))
#else
#define LADDER_FN static inline
#endif

namespace ladder_kernels::math {

template <class To, class From>
LADDER_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// The polynomial c0 + c1 x + c2 x^2 + ...
template <class T>
LADDER_FN T polynomial(T, T c0) {
  return c0;
}
template <class T, class... Rest>
LADDER_FN T polynomial(T x, T c0, Rest... rest) {
  return c0 + x * polynomial(x, rest...);
}

// a b + c. On a GPU always rounded once, or two kernels might round it differently; hosts may lack the instruction.
template <class T>
LADDER_FN T multiply_add(T a, T b, T c) {
#if defined(__CUDA_ARCH__)
  return ::fma(a, b, c);
#else
  return a * b + c;
#endif
}

template <class T>
struct SinCos {
  T sin, cos;
};

// e^x, and two factors of e^-x: their product may lie far beyond the range of T, so each ends short of infinity.
template <class T>
struct ExpAndInverse {
  T value, inverse_a, inverse_b;
};

LADDER_FN double exp(double x) { return ::exp(x); }
// What `exp_and_inverse` wants computed beforehand.
LADDER_FN double exp_beforehand(double x) {
  const double half = 0.5 * x;
  return exp(half < -708.0 ? -708.0 : half);
}
LADDER_FN ExpAndInverse<double> exp_and_inverse(double, double beforehand) {
  const double inverse = 1 / beforehand;
  return {beforehand * beforehand, inverse, inverse};
}
// e^(factor x).
LADDER_FN double exp_of_product(double factor, double x) { return exp(factor * x); }
LADDER_FN double expm1_near_zero(double x) { return ::expm1(x); }
LADDER_FN double log(double x) { return ::log(x); }
LADDER_FN double positive_log(double x) { return ::log(x); }
LADDER_FN double minus_two_log(double x) { return -2 * positive_log(x); }
// distance - ln x of distance = x - 1, x = root^2 = rest^2 e^exponent. Where x leaves the range, rest does not; near
// one, where the difference cancels, the logarithm is that of the very number that distance is of.
LADDER_FN double excess_over_log(double distance, double root, double rest, double exponent) {
  const bool near_one = ::fabs(distance) < 0.25;
  return distance - 2 * log(near_one ? root : rest) - (near_one ? 0 : exponent);
}
// ln(1 + x) / x for 0 <= x <= 1, and NaN for NaN.
LADDER_FN double log1p_quotient(double x) { return x > 0 ? ::log1p(x) / x : 1 - x; }
LADDER_FN double abs(double x) { return ::fabs(x); }
LADDER_FN float abs(float x) { return ::fabsf(x); }
LADDER_FN double reciprocal(double x) { return 1 / x; }
// Its square is 0, and its inverse is in the range times a few thousand.
LADDER_FN double smallest_root(double) { return 1e-300; }
LADDER_FN float smallest_root(float) { return 1e-34f; }
LADDER_FN double sqrt(double x) { return ::sqrt(x); }
LADDER_FN double reciprocal_sqrt(double x) { return 1 / ::sqrt(x); }
// NaN where x is.
LADDER_FN double minimum(double x, double bound) { return x > bound ? bound : x; }
LADDER_FN double maximum(double x, double bound) { return x < bound ? bound : x; }

// e^x - 1 for |x| <= 1/2; meaningless outside. 1.09 ulp.
LADDER_FN float expm1_near_zero(float x) {
  const float tail =
      polynomial(x, 0.50000006f, 0.166666642f, 0.0416653603f, 0.00833357871f, 0.00139961764f, 0.000198498092f);
  return x + x * x * tail;
}

// ln(1 + x) / x for 0 <= x <= 1; exact at 0. 1.79 ulp.
LADDER_FN float log1p_quotient(float x) {
  return polynomial(x, 1.0f, -0.499996483f, 0.33321324f, -0.248571634f, 0.191536546f, -0.137538031f, 0.079204537f,
                    -0.0300657917f, 0.00536482455f);
}

#if defined(__CUDA_ARCH__)

// The approximate instructions of the special function unit, as ladder_kernels/backends/triton/math.py takes them;
// flush-to-zero where a denormal does not matter, so that no instruction is spent on it. NaN stays NaN.
#define LADDER_APPROXIMATE(name, instruction)             \
  static __device__ __forceinline__ float name(float x) { \
    float y;                                              \
    asm(instruction " %0, %1;" : "=f"(y) : "f"(x));       \
    return y;                                             \
  }
LADDER_APPROXIMATE(approximate_exp2, "ex2.approx.ftz.f32")
LADDER_APPROXIMATE(approximate_exp2_with_denormals, "ex2.approx.f32")
LADDER_APPROXIMATE(approximate_log2, "lg2.approx.ftz.f32")
LADDER_APPROXIMATE(approximate_sqrt, "sqrt.approx.ftz.f32")
LADDER_APPROXIMATE(approximate_reciprocal_sqrt, "rsqrt.approx.ftz.f32")
LADDER_APPROXIMATE(reciprocal, "rcp.approx.ftz.f32")
LADDER_APPROXIMATE(approximate_sin, "sin.approx.ftz.f32")
LADDER_APPROXIMATE(approximate_cos, "cos.approx.ftz.f32")
#undef LADDER_APPROXIMATE

LADDER_FN float exp(float x) { return approximate_exp2(x * 1.44269504f); }
// A literal factor costs nothing here.
LADDER_FN float exp_of_product(float factor, float x) { return approximate_exp2(x * (factor * 1.44269504f)); }
LADDER_FN float log(float x) { return approximate_log2(x) * 0.693147181f; }
LADDER_FN float positive_log(float x) { return log(x); }
LADDER_FN float minus_two_log(float x) { return approximate_log2(x) * -1.38629436f; }
LADDER_FN float sqrt(float x) { return approximate_sqrt(x); }
LADDER_FN float reciprocal_sqrt(float x) { return approximate_reciprocal_sqrt(x); }

// The approximate logarithm has an absolute error near 1; there a polynomial takes over, whose own error is 2.4e-7 of
// the result.
LADDER_FN float excess_over_log(float distance, float, float rest, float exponent) {
  const float near_one = distance * distance *
                         polynomial(distance, 0.5f, -0.33333662f, 0.25000498f, -0.19958508f, 0.1662067f, -0.15585305f,
                                    0.1376279f);
  return fabsf(distance) < 0.25f ? near_one : distance - exponent + minus_two_log(rest);
}

// NaN where either is.
LADDER_FN float minimum(float x, float bound) {
  float smaller;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(smaller) : "f"(x), "f"(bound));
  return smaller;
}
LADDER_FN float maximum(float x, float bound) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(x), "f"(bound));
  return larger;
}

LADDER_FN float exp_beforehand(float x) { return approximate_exp2_with_denormals(x * 1.44269504f); }
// The error of one instruction each: the rest is e^0 = 1 wherever e^-x is in range.
LADDER_FN ExpAndInverse<float> exp_and_inverse(float x, float beforehand) {
  const float exponent = -(x * 1.44269504f), near = maximum(minimum(exponent, 126.0f), -126.0f);
  return {beforehand, approximate_exp2(near), approximate_exp2(minimum(exponent - near, 126.0f))};
}

// One instruction; the compiler makes two of a plain product, one for either half.
LADDER_FN std::uint64_t wide_product(std::uint32_t a, std::uint32_t b) {
  std::uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
}

LADDER_FN SinCos<float> sincos_turns(float u) {
  const float angle = 6.28318531f * u;
  return {approximate_sin(angle), approximate_cos(angle)};
}
LADDER_FN SinCos<double> sincos_turns(double u) {
  SinCos<double> result;
  ::sincospi(2 * u, &result.sin, &result.cos);
  return result;
}

#else

LADDER_FN SinCos<double> sincos_turns(double u) {
  const double angle = 6.283185307179586 * u;
  return {::sin(angle), ::cos(angle)};
}

LADDER_FN float sqrt(float x) { return ::sqrtf(x); }
LADDER_FN float reciprocal(float x) { return 1.0f / x; }
LADDER_FN float reciprocal_sqrt(float x) { return 1.0f / ::sqrtf(x); }
LADDER_FN float minimum(float x, float bound) { return x > bound ? bound : x; }
LADDER_FN float maximum(float x, float bound) { return x < bound ? bound : x; }
LADDER_FN std::uint64_t wide_product(std::uint32_t a, std::uint32_t b) { return std::uint64_t{a} * b; }

// A float and the integer it stands for.
struct Rounded {
  float value;
  std::int32_t integer;
};

// The nearest integer of |x| < 2^22: at 1.5 * 2^23 the spacing of floats is one.
LADDER_FN Rounded round(float x) {
  constexpr float shift = 12582912.0f;
  const float shifted = x + shift;
  return {shifted - shift, bit_cast<std::int32_t>(shifted) - bit_cast<std::int32_t>(shift)};
}

// 2^n for -126 <= n <= 127.
LADDER_FN float power_of_two(std::int32_t n) { return bit_cast<float>(static_cast<std::uint32_t>(n + 127) << 23); }

// e^x. 0 for -inf, inf for inf, NaN for NaN; denormal results are exact to their spacing. 1.02 ulp.
LADDER_FN float exp(float x) {
  // Beyond these the result is inf and 0 anyway; a NaN passes both comparisons.
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  // x = n ln 2 + r; the first part of ln 2 has 9 bits, so n times it is exact.
  const Rounded n = round(x * 1.44269504f);
  const float r = x - n.value * 0.693359375f - n.value * -2.12194440e-4f;
  const float tail = polynomial(r, 0.49999994f, 0.166665211f, 0.041668389f, 0.00836871006f, 0.00138146128f);
  // In two steps: 2^n alone may be denormal or overflow where the result does not.
  const std::int32_t half = n.integer >> 1;
  return (1.0f + (r + r * r * tail)) * power_of_two(half) * power_of_two(n.integer - half);
}

LADDER_FN float exp_of_product(float factor, float x) { return exp(factor * x); }
LADDER_FN float exp_beforehand(float x) { return exp(maximum(0.5f * x, -87.0f)); }
LADDER_FN ExpAndInverse<float> exp_and_inverse(float, float beforehand) {
  const float inverse = 1.0f / beforehand;
  return {beforehand * beforehand, inverse, inverse};
}

// ln x for x >= 2^-126; inf for inf and NaN for NaN. 0.87 ulp.
LADDER_FN float positive_log(float x) {
  // x = 2^n (1 + r) with 1 + r between sqrt(1/2), whose bits these are, and sqrt(2).
  // Unsigned: what x < 0 gives is of no use, but must be defined.
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  const std::int32_t n = static_cast<std::int32_t>(bits - 0x3f3504f3u) >> 23;
  const float r = bit_cast<float>(bits - (static_cast<std::uint32_t>(n) << 23)) - 1.0f, square = r * r;
  const float exponent = static_cast<float>(n);
  const float tail = polynomial(r, 0.333333313f, -0.250008196f, 0.200012267f, -0.166233569f, 0.142017588f,
                                -0.131601825f, 0.12761575f, -0.0763449296f);
  const float low = square * r * tail + exponent * -2.12194440e-4f - 0.5f * square;
  const float finite = exponent * 0.693359375f + (r + low);
  return x < std::numeric_limits<float>::infinity() ? finite : x;
}

// ln x. -inf for 0, NaN below and for NaN, inf for inf; denormals included. 0.87 ulp.
LADDER_FN float log(float x) {
  const bool denormal = x < std::numeric_limits<float>::min();
  const float value = positive_log(x * (denormal ? 8388608.0f : 1.0f)) - (denormal ? 15.9423847f : 0.0f);
  const float at_most_zero =
      x == 0.0f ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  return x > 0.0f ? value : at_most_zero;
}

LADDER_FN float minus_two_log(float x) { return -2.0f * positive_log(x); }

LADDER_FN float excess_over_log(float distance, float root, float rest, float exponent) {
  const bool near_one = ::fabsf(distance) < 0.25f;
  return distance - 2.0f * log(near_one ? root : rest) - (near_one ? 0.0f : exponent);
}

// sin and cos of an angle that lies r turns, at most an eighth, from so many quarters.
LADDER_FN SinCos<float> sincos_from(Rounded quarter, float r) {
  const float square = r * r;
  const float sin = r * polynomial(square, 6.28318548f, -41.3416634f, 81.5923538f, -75.3935623f);
  const float cos = 1.0f + square * polynomial(square, -19.7392082f, 64.9393234f, -85.4432373f, 59.2292442f);
  const std::uint32_t turns = static_cast<std::uint32_t>(quarter.integer);
  const std::uint32_t sin_sign = (turns & 2) << 30, cos_sign = ((turns + 1) & 2) << 30;
  const bool odd = (turns & 1) != 0;
  return {bit_cast<float>(bit_cast<std::uint32_t>(odd ? cos : sin) ^ sin_sign),
          bit_cast<float>(bit_cast<std::uint32_t>(odd ? sin : cos) ^ cos_sign)};
}

// sin and cos of 2 pi u for 0 <= u <= 1. Error at most 8.8e-8.
LADDER_FN SinCos<float> sincos_turns(float u) {
  const Rounded quarter = round(4.0f * u);
  return sincos_from(quarter, u - 0.25f * quarter.value);
}

// sin and cos of an angle between 0 and 2 pi. Error at most XXX.
LADDER_FN SinCos<float> sincos(float angle) {
  // The first part of pi / 2 has 16 bits, so quarters of it are exact, and so is the difference.
  const Rounded quarter = round(angle * 0.636619772f);
  const float rest = angle - quarter.value * 1.57077026f - quarter.value * 2.60631233e-5f;
  return sincos_from(quarter, rest * 0.159154943f);
}

#endif

}  // namespace ladder_kernels::math
