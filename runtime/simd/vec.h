// vec.h: sixteen float lanes with one meaning on every machine.
//
// A v16 is one zmm register, two ymm, four NEON registers, or what the compiler makes of it; the results are
// the same bits everywhere, because each operation is either exact, correctly rounded, or built from such:
// + - * / are IEEE, v16_fma rounds once, reductions have a fixed order, and exp is our own polynomial.
// Compile with -ffp-contract=off: a fused multiply-add happens where v16_fma is written and nowhere else.
#ifndef BITGEN_VEC_H
#define BITGEN_VEC_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define BG_VEC_AVX2 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#define BG_VEC_NEON 1
#endif
#if defined(__AVX512F__)
#define BG_VEC_AVX512 1
#endif

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpsabi" // everything here is inlined: no vector crosses a call
#endif
#define VEC static inline __attribute__((always_inline, unused))

enum { LANES = 16 };
typedef float v16 __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef float v8 __attribute__((vector_size(32)));
typedef float v4 __attribute__((vector_size(16)));
typedef int8_t v16b __attribute__((vector_size(16)));
typedef int16_t v16s __attribute__((vector_size(32)));
typedef int8_t v32b __attribute__((vector_size(32)));
typedef int16_t v32s __attribute__((vector_size(64)));
typedef int8_t v64b __attribute__((vector_size(64)));
typedef uint8_t v64u __attribute__((vector_size(64)));
typedef uint16_t v32u __attribute__((vector_size(64)));

VEC v16 v16_set(float a) { return (v16){a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a}; }
VEC v16i v16i_set(int32_t a) { return (v16i){a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a}; }
VEC v16i v16i_iota(void) { return (v16i){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

// Loads and stores take any alignment.
VEC v16 v16_load(const float *p) {
  v16 a;
  memcpy(&a, p, sizeof a);
  return a;
}
VEC void v16_store(float *p, v16 a) { memcpy(p, &a, sizeof a); }
VEC v16 v16_load_i8(const int8_t *p) {
  v16b a;
  memcpy(&a, p, sizeof a);
  return __builtin_convertvector(a, v16);
}

// The first n of 16 elements, the rest zero: the tail of a row that is not padded.
// A whole vector is one instruction; copying so many bytes as turn out is a call.
VEC v16 v16_load_part(const float *p, int32_t n) {
  v16 a = {0};
  if (n >= LANES)
    return v16_load(p);
  memcpy(&a, p, (size_t)n * sizeof *p);
  return a;
}
VEC v16i v16i_load_part(const int32_t *p, int32_t n) { return (v16i)v16_load_part((const float *)p, n); }
VEC void v16_store_part(float *p, int32_t n, v16 a) {
  if (n >= LANES)
    v16_store(p, a);
  else
    memcpy(p, &a, (size_t)n * sizeof *p);
}

VEC v8 v16_low(v16 a) { return __builtin_shufflevector(a, a, 0, 1, 2, 3, 4, 5, 6, 7); }
VEC v8 v16_high(v16 a) { return __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15); }
VEC v16 v16_join(v8 a, v8 b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

VEC v16 v16_select(v16i mask, v16 a, v16 b) { return (v16)((mask & (v16i)a) | (~mask & (v16i)b)); }
VEC v16 v16_max(v16 a, v16 b) { return v16_select(a > b, a, b); }
VEC v16 v16_min(v16 a, v16 b) { return v16_select(a < b, a, b); }
VEC v16 v16_abs(v16 a) { return (v16)((v16i)a & v16i_set(0x7fffffff)); }
VEC v16 v16_clamp(v16 a, float low, float high) { // NaN becomes low
  return v16_min(v16_max(a, v16_set(low)), v16_set(high));
}

// a * b + c, rounded once.
#if BG_VEC_AVX512
VEC v16 v16_fma(v16 a, v16 b, v16 c) { return (v16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif BG_VEC_AVX2
VEC v16 v16_fma(v16 a, v16 b, v16 c) {
  return v16_join((v8)_mm256_fmadd_ps((__m256)v16_low(a), (__m256)v16_low(b), (__m256)v16_low(c)),
                  (v8)_mm256_fmadd_ps((__m256)v16_high(a), (__m256)v16_high(b), (__m256)v16_high(c)));
}
#elif BG_VEC_NEON || defined(__riscv_flen)
VEC v16 v16_fma(v16 a, v16 b, v16 c) {
  for (int i = 0; i < LANES; i++)
    c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
#else
// Without the instruction: the product of two floats is exact in double; the sum is rounded to odd (its last
// bit set when anything was lost), which makes the second rounding, to float, the only one that counts
// (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
VEC float fma_to_odd(float a, float b, float c) {
  double p = (double)a * b, s = p + c;
  double t = s - p, lost = (p - (s - t)) + (c - t); // what the addition dropped, exactly
  uint64_t bits;
  memcpy(&bits, &s, sizeof bits);
  if ((lost > 0 || lost < 0) && !(bits & 1))
    bits += (lost > 0) == (s > 0) ? 1 : (uint64_t)-1;
  memcpy(&s, &bits, sizeof s);
  return (float)s;
}
VEC v16 v16_fma(v16 a, v16 b, v16 c) {
  for (int i = 0; i < LANES; i++)
    c[i] = fma_to_odd(a[i], b[i], c[i]);
  return c;
}
#endif

// Thirty-two int16 as sixteen pairs: from int8 in memory, and one pair in all places.
VEC v32s v32s_load_i8(const int8_t *p) {
  v32b a;
  memcpy(&a, p, sizeof a);
  return __builtin_convertvector(a, v32s);
}
VEC v32s v32s_load(const int16_t *p) {
  v32s a;
  memcpy(&a, p, sizeof a);
  return a;
}
VEC v32s v32s_set_pair(const int16_t *p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return (v32s)v16i_set(pair);
}
VEC v16s v32s_low(v32s a) {
  return __builtin_shufflevector(a, a, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
VEC v16s v32s_high(v32s a) {
  return __builtin_shufflevector(a, a, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
}

// sum + the two products of each pair, exactly: the caller sees to it that nothing leaves int32.
#if defined(__AVX512VNNI__)
VEC v16i v16i_add_pairs(v16i sum, v32s a, v32s b) {
  return (v16i)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#elif BG_VEC_AVX2
VEC v16i v16i_add_pairs(v16i sum, v32s a, v32s b) {
  const __m256i low = _mm256_madd_epi16((__m256i)v32s_low(a), (__m256i)v32s_low(b)),
                high = _mm256_madd_epi16((__m256i)v32s_high(a), (__m256i)v32s_high(b));
  return sum + (v16i)v16_join((v8)low, (v8)high);
}
#else
// A pair is the low and the high half of a 32-bit lane, each of which is sign-extended.
VEC v16i v16i_add_pairs(v16i sum, v32s a, v32s b) {
  v16i x = (v16i)a, y = (v16i)b;
  return sum + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
}
#endif

VEC v64b v64b_load(const void *p) {
  v64b a;
  memcpy(&a, p, sizeof a);
  return a;
}
VEC v64u v64u_load(const void *p) { return (v64u)v64b_load(p); }
// (a >> by) & mask, of a mask that no bit reaches from a neighbour; by < 0: to the left.
VEC v64u v64u_bits(v64u a, int by, uint8_t mask) {
  const v32u pairs = (v32u)a; // few machines shift bytes
  return (v64u)(by < 0 ? pairs << -by : pairs >> by) & ((v64u){0} + mask);
}

// sum + the products of a, 0 to 63, with b, -127 to 127: each goes to some lane, so that only the sum over
// all lanes has a meaning.
#if defined(__AVX512VNNI__)
VEC v16i v16i_add_products(v16i sum, v64u a, v64b b) {
  return (v16i)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#elif BG_VEC_AVX2
VEC __m256i products_of_half(__m256i a, __m256i b) { // pairs are 2 * 63 * 127 at most, which int16 holds
  return _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
}
VEC v16i v16i_add_products(v16i sum, v64u a, v64b b) {
  __m256i x[2], y[2];
  memcpy(x, &a, sizeof a);
  memcpy(y, &b, sizeof b);
  return sum + (v16i)v16_join((v8)products_of_half(x[0], y[0]), (v8)products_of_half(x[1], y[1]));
}
#elif BG_VEC_NEON
VEC int32x4_t add_products_of_quarter(int32x4_t sum, int8x16_t a, int8x16_t b) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sum, a, b);
#else // 2 * 63 * 127 is what int16 holds
  return vpadalq_s16(sum,
                     vmlal_s8(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vget_high_s8(a), vget_high_s8(b)));
#endif
}
VEC v16i v16i_add_products(v16i sum, v64u a, v64b b) {
  int8x16_t x[4], y[4];
  int32x4_t z[4];
  memcpy(x, &a, sizeof a);
  memcpy(y, &b, sizeof b);
  memcpy(z, &sum, sizeof sum);
  for (int i = 0; i < 4; i++)
    z[i] = add_products_of_quarter(z[i], x[i], y[i]);
  memcpy(&sum, z, sizeof sum);
  return sum;
}
#else
VEC v16i v16i_add_products(v16i sum, v64u a, v64b b) {
  v32b x[2], y[2];
  memcpy(x, &a, sizeof a);
  memcpy(y, &b, sizeof b);
  for (int i = 0; i < 2; i++)
    sum = v16i_add_pairs(sum, __builtin_convertvector(x[i], v32s), __builtin_convertvector(y[i], v32s));
  return sum;
}
#endif

// Sum and maximum over lanes, by halves: j + (j + 8), then 4, 2, 1.
VEC float v16_sum(v16 a) {
  v8 b = v16_low(a) + v16_high(a);
  v4 c = __builtin_shufflevector(b, b, 0, 1, 2, 3) + __builtin_shufflevector(b, b, 4, 5, 6, 7);
  c = c + __builtin_shufflevector(c, c, 2, 3, 0, 1);
  return c[0] + c[1];
}
VEC int32_t v16i_sum(v16i a) {
  a += __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  a += __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  a += __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return a[0] + a[1];
}
VEC float v16_hmax(v16 a) {
  a = v16_max(a, __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  a = v16_max(a, __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  a = v16_max(a, __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  return a[0] > a[1] ? a[0] : a[1];
}

// The nearest integer, ties to even, of |a| <= 2^22: adding 1.5 * 2^23 leaves no bits for a fraction, and the
// integer then stands in the low bits of the sum.
VEC v16i v16_round(v16 a) { return (v16i)(a + v16_set(0x1.8p23f)) - v16i_set(0x4b400000); }

// Half precision, stored as uint16_t. Every half is a float; a float is rounded to the nearest half, ties to
// even, and saturates at +-65504 (NaN too), so that nothing stored is ever infinite.
#if BG_VEC_AVX512
VEC v16 v16_load_f16(const uint16_t *p) {
  return (v16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
#elif BG_VEC_AVX2
VEC v16 v16_load_f16(const uint16_t *p) {
  return v16_join((v8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                  (v8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}
#elif BG_VEC_NEON
VEC v16 v16_load_f16(const uint16_t *p) {
  float16x8_t a = vreinterpretq_f16_u16(vld1q_u16(p)), b = vreinterpretq_f16_u16(vld1q_u16(p + 8));
  v4 q[4] = {(v4)vcvt_f32_f16(vget_low_f16(a)), (v4)vcvt_high_f32_f16(a), (v4)vcvt_f32_f16(vget_low_f16(b)),
             (v4)vcvt_high_f32_f16(b)};
  return v16_join(__builtin_shufflevector(q[0], q[1], 0, 1, 2, 3, 4, 5, 6, 7),
                  __builtin_shufflevector(q[2], q[3], 0, 1, 2, 3, 4, 5, 6, 7));
}
#else
VEC v16 v16_load_f16(const uint16_t *p) {
  typedef uint16_t v16h __attribute__((vector_size(32)));
  v16h half;
  memcpy(&half, p, sizeof half);
  v16i h = __builtin_convertvector(half, v16i);
  // exponent and fraction in a float's place, rebased from 15 to 127 by an exact product (subnormals too)
  v16 a = (v16)((h & v16i_set(0x7fff)) << 13) * v16_set(0x1p112f);
  v16i special = (h & v16i_set(0x7c00)) == v16i_set(0x7c00); // infinity and NaN keep an all-ones exponent
  return (v16)((v16i)a | (special & v16i_set(0x7f800000)) | (h & v16i_set(0x8000)) << 16);
}
#endif

// Bfloat16 is the upper half of a float.
VEC v16 v16_load_bf16(const uint16_t *p) {
  typedef uint16_t v16h __attribute__((vector_size(32)));
  v16h upper;
  memcpy(&upper, p, sizeof upper);
  return (v16)(__builtin_convertvector(upper, v16i) << 16);
}

VEC void v16_store_f16(uint16_t *p, v16 a) {
  a = v16_clamp(a, -65504.0f, 65504.0f);
#if BG_VEC_AVX512
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT));
#elif BG_VEC_AVX2
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v16_low(a), _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph((__m256)v16_high(a), _MM_FROUND_TO_NEAREST_INT));
#elif BG_VEC_NEON
  v8 low = v16_low(a), high = v16_high(a);
  v4 q[4] = {__builtin_shufflevector(low, low, 0, 1, 2, 3), __builtin_shufflevector(low, low, 4, 5, 6, 7),
             __builtin_shufflevector(high, high, 0, 1, 2, 3),
             __builtin_shufflevector(high, high, 4, 5, 6, 7)};
  for (int i = 0; i < 4; i++)
    vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)q[i])));
#else
  // Normal halves: round the fraction at bit 13 by an addition that carries into the exponent. Subnormal
  // ones: adding 1/2 aligns the sum's last bit with 2^-24, so that the hardware does the rounding.
  v16i bits = (v16i)v16_abs(a), sign = ((v16i)a >> 16) & v16i_set(0x8000);
  v16i normal = (bits + v16i_set(0xfff) + ((bits >> 13) & v16i_set(1)) - v16i_set(112 << 23)) >> 13;
  v16i small = (v16i)(v16_abs(a) + v16_set(0.5f)) - v16i_set(0x3f000000);
  v16i tiny = bits < v16i_set(113 << 23);
  v16i h = (tiny & small) | (~tiny & normal) | sign;
  for (int i = 0; i < LANES; i++)
    p[i] = (uint16_t)h[i];
#endif
}

// e^a within 2 ulp for a in [-87, 88], clamped outside; exactly 1 at 0. a = n ln 2 + r with |r| <= ln(2) / 2;
// the polynomial for e^r is the well-known one of Cephes' expf.
VEC v16 v16_exp(v16 a) {
  a = v16_clamp(a, -87.0f, 88.0f);
  v16i n = v16_round(a * v16_set(0x1.715476p0f));
  v16 k = __builtin_convertvector(n, v16);
  v16 r = v16_fma(k, v16_set(-0x1.63p-1f), a);
  r = v16_fma(k, v16_set(0x1.bd0106p-13f), r);
  v16 y = v16_set(1.9875691500e-4f);
  y = v16_fma(y, r, v16_set(1.3981999507e-3f));
  y = v16_fma(y, r, v16_set(8.3334519073e-3f));
  y = v16_fma(y, r, v16_set(4.1665795894e-2f));
  y = v16_fma(y, r, v16_set(1.6666665459e-1f));
  y = v16_fma(y, r, v16_set(5.0000001201e-1f));
  y = v16_fma(y, r * r, r) + v16_set(1.0f);
  return y * (v16)((n + v16i_set(127)) << 23);
}
VEC float exp_of(float a) { return v16_exp(v16_set(a))[0]; }

// ln(1 + a) within 2 ulp for a in [0, 1]: 2 artanh(s) with s = a / (2 + a) <= 1/3, whose series in s^2 <= 1/9 is
// cut where the first term left out is below 2^-29 of the whole (9^-8 / 17).
VEC v16 v16_log1p(v16 a) {
  v16 s = a / (a + v16_set(2)), z = s * s, y = v16_set(1.0f / 15);
  y = v16_fma(y, z, v16_set(1.0f / 13));
  y = v16_fma(y, z, v16_set(1.0f / 11));
  y = v16_fma(y, z, v16_set(1.0f / 9));
  y = v16_fma(y, z, v16_set(1.0f / 7));
  y = v16_fma(y, z, v16_set(1.0f / 5));
  y = v16_fma(y, z, v16_set(1.0f / 3));
  s = s + s;
  return v16_fma(s * z, y, s);
}
// ln(1 + e^a), of any a (NaN becomes that of -87): max(a, 0) + ln(1 + e^-|a|).
VEC v16 v16_softplus(v16 a) { return v16_max(a, v16_set(0)) + v16_log1p(v16_exp(v16_set(0) - v16_abs(a))); }
VEC v16 v16_sigmoid(v16 a) { return v16_set(1) / (v16_set(1) + v16_exp(-a)); }
VEC v16 v16_silu(v16 a) { return a / (v16_set(1) + v16_exp(-a)); }

#endif
