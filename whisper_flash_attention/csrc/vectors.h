// Vectors of as many float32 as the registers of a level hold, and of numbers of two bytes.
//
// Everything is in an unnamed namespace and nothing comes from a library's headers: of inline functions that several
// units hold the linker keeps one, and it may be the one that the processor cannot run.
#pragma once

#include <cstdint>

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
// GCC 12 takes what its own headers leave undefined on purpose for a fault.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX2__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

// Numbers of two bytes: the upper half of a float32, and IEEE's binary16.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

Floats all(float x) { return x - Floats{}; }
Floats as_floats(Words x) { return (Floats)x; }
Words as_words(Floats x) { return (Words)x; }
Floats larger(Floats x, Floats y) { return x > y ? x : y; }  // y where one is not a number

Floats convert(Halves x, BFloat16) { return as_floats(__builtin_convertvector(x, Words) << 16); }

Floats convert(Halves x, Float16) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_cvtph_ps(0xffff, (__m256i)x);
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps((__m128i)x);
#else
  const Words wide = __builtin_convertvector(x, Words), magnitude = wide & 0x7fff;
  // Shifted into place, an exponent is 112 too small; subnormal numbers come right by the product as well.
  const Words shifted = as_words(as_floats(magnitude << 13) * 0x1p112f), special = (Words)(magnitude >= 0x7c00);
  return as_floats(((wide & 0x8000) << 16) | (shifted & ~special) | (((magnitude << 13) | 0x7f800000) & special));
#endif
}

// LANES numbers, or the first `count` of them and zeros.
Floats load(const float *from) {
  Floats x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
template <class Half> Floats load(const Half *from) {
  Halves x;
  __builtin_memcpy(&x, from, sizeof x);
  return convert(x, Half{});
}
template <class Number> Floats load(const Number *from, int64_t count) {
  if (count >= LANES) return load(from);
  Number some[LANES] = {};
  __builtin_memcpy(some, from, count * sizeof(Number));
  return load(some);
}

void store(float *to, Floats x, int64_t count) {
  if (count >= LANES) __builtin_memcpy(to, &x, sizeof x);
  else __builtin_memcpy(to, &x, count * sizeof(float));
}

Halves narrow(Floats x, BFloat16) {
  const Words bits = as_words(x), is_nan = (Words)(x != x);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector((rounded & ~is_nan) | (((bits >> 16) | 0x40) & is_nan), Halves);
}

Halves narrow(Floats x, Float16) {
#if defined(__AVX512F__)
  return (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (Halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#else
  const Words bits = as_words(x), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
  const Words is_nan = (Words)(magnitude > 0x7f800000), is_small = (Words)(magnitude < 0x38800000);
  const Words is_large = (Words)(magnitude >= 0x47800000) & ~is_nan;
  const Words normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Added to 1/2, a number of less than 2^-14 is rounded to multiples of 2^-24.
  const Words small = as_words(as_floats(magnitude) + 0.5f) - 0x3f000000;
  const Words rounded = (normal & ~(is_small | is_large | is_nan)) | (small & is_small) | (0x7c00 & is_large) | (0x7e00 & is_nan);
  return __builtin_convertvector(sign | rounded, Halves);
#endif
}

template <class Half> void store(Half *to, Floats x, int64_t count) {
  const Halves bits = narrow(x, Half{});
  __builtin_memcpy(to, &bits, least(count, LANES) * sizeof(Half));
}

constexpr float LOG2_E = 1.44269504f;

// 2^x for x <= 0, to some units in the last place; 0 below float32's normal numbers. x = n + r with |r| <= 1/2, and the
// polynomial that errs least for 2^r, relatively, by 9.1e-8.
Floats exp2(Floats x) {
  constexpr float SHIFT = 0x1.8p23f + 127;  // after adding it, the lowest bits are n with float32's bias
  x = larger(all(-127.0f), x);
  const Floats shifted = x + SHIFT, r = x - (shifted - SHIFT);
  Floats y = 1.3264720366e-3f * r + 9.6715130223e-3f;
  y = y * r + 5.5507337777e-2f;
  y = y * r + 2.4022242077e-1f;
  y = y * r + 6.9314697756e-1f;
  y = y * r + 1.0f;
  return y * as_floats(as_words(shifted) << 23);
}

}  // namespace

#define JOIN(a, b) a##b
#define NAME_OF(function, level) JOIN(function, level)
