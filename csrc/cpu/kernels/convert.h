// Storage types and the compute type, without branches, so that loops over them vectorise on every instruction set.
#pragma once

namespace ladder_kernels::cpu::LADDER_ISA {

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

}  // namespace ladder_kernels::cpu::LADDER_ISA
