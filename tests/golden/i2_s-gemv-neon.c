// bg_i2_s_gemv_m7_k128_bm4_bk64_pf2048__neon
//
// gemv of W [7, 128] in layout i2_s_bm4_bk64 on neon.
// Generated from templates/i2_s/neon.c.j2 by:
//   bitgen gen bg_i2_s_gemv_m7_k128_bm4_bk64_pf2048__neon

#include <arm_neon.h>
#include <string.h>

#include "kernel.h"

enum { M = 7, K = 128, M_PAD = 8, K_PAD = 128 };
enum { BM = 4, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 256, OPERAND_BYTES = 192 };
enum { PREFETCH = 2048 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

enum { VB = 16, BLOCKS = K_PAD / BK, PANEL_BYTES = BM * K_PAD / 4 };
_Static_assert(BK == 4 * VB && K_PAD % BK == 0, "a block of one row is one vector of 64 codes");

// One token's operand: int32 sum(q) alone on a cache line, then q padded with zeros to K_PAD. The sum undoes
// the + 1 of the codes: sum (w + 1) q - sum q = sum w q.
enum { HEADER = 64 };

static void pack_activations(const int8_t *q, int32_t n, uint8_t *operand) {
  for (int32_t t = 0; t < n; t++, q += K, operand += OPERAND_BYTES) {
    int32_t sum = 0;
    for (int32_t i = 0; i < K; i++)
      sum += q[i];
    memset(operand, 0, HEADER);
    memcpy(operand, &sum, sizeof sum);
    memcpy(operand + HEADER, q, K);
    memset(operand + HEADER + K, 0, OPERAND_BYTES - HEADER - K);
  }
}

static inline int32_t operand_sum(const uint8_t *operand) {
  int32_t sum;
  memcpy(&sum, operand, sizeof sum);
  return sum;
}

static inline int8x16_t load(const uint8_t *p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }

// Partial sums are int16, in one vector for the low and one for the high halves. A lane gains 4 products of a
// code 0..2 and an activation -128..127 from each block: over SPAN blocks it stays within [-32768, 32512].
enum { SPAN = 2048 / BK };
_Static_assert(SPAN * 4 * (2 * 128) <= 32768, "int16 sums over SPAN blocks are exact");

// Codes 0..2 of the four quarters of a block.
static inline void decode(const uint8_t *w, int8x16_t c[4]) {
  const uint8x16_t v = vld1q_u8(w), low2 = vdupq_n_u8(3);
  c[0] = vreinterpretq_s8_u8(vshrq_n_u8(v, 6));
  c[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 4), low2));
  c[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 2), low2));
  c[3] = vreinterpretq_s8_u8(vandq_u8(v, low2));
}

// acc += c times x, the low halves' products in acc[0] and the high halves' in acc[1]. Here and below, loops
// whose sums must stay in registers ask to be unrolled: not all versions of clang see that by themselves.
static inline void multiply_add(int16x8_t acc[2], const int8x16_t c[4], const int8x16_t x[4]) {
#pragma unroll
  for (int quarter = 0; quarter < 4; quarter++) {
    acc[0] = vmlal_s8(acc[0], vget_low_s8(c[quarter]), vget_low_s8(x[quarter]));
    acc[1] = vmlal_high_s8(acc[1], c[quarter], x[quarter]);
  }
}

static inline int32x4_t widen_add(int32x4_t total, const int16x8_t acc[2]) {
  return vpadalq_s16(vpadalq_s16(total, acc[0]), acc[1]);
}

// The rows of a panel are interleaved block by block: one sequential stream of weights, and each load of the
// activations serves BM rows.
static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)n, (void)scratch;
  w += (size_t)p0 * PANEL_BYTES;
  for (int32_t p = p0; p < p1; p++) {
    int32x4_t total[BM];
    for (int r = 0; r < BM; r++)
      total[r] = vdupq_n_s32(0);
    for (int32_t b0 = 0; b0 < BLOCKS; b0 += SPAN) {
      const int32_t b1 = b0 + SPAN < BLOCKS ? b0 + SPAN : BLOCKS;
      int16x8_t acc[BM][2];
      for (int r = 0; r < BM; r++)
        acc[r][0] = acc[r][1] = vdupq_n_s16(0);
      for (int32_t b = b0; b < b1; b++) {
        const uint8_t *q = operand + HEADER + b * BK;
        const int8x16_t x[4] = {load(q), load(q + VB), load(q + 2 * VB), load(q + 3 * VB)};
#pragma unroll
        for (int r = 0; r < BM; r++, w += VB) {
          if (r % 4 == 0)
            __builtin_prefetch(w + PREFETCH);
          int8x16_t c[4];
          decode(w, c);
          multiply_add(acc[r], c, x);
        }
      }
      for (int r = 0; r < BM; r++)
        total[r] = widen_add(total[r], acc[r]);
    }
    for (int r = 0; r < BM; r++)
      y[p * BM + r] = vaddvq_s32(total[r]) - operand_sum(operand);
  }
}

const bg_kernel bg_i2_s_gemv_m7_k128_bm4_bk64_pf2048__neon = {
    .symbol = "bg_i2_s_gemv_m7_k128_bm4_bk64_pf2048__neon",
    .m = M,
    .k = K,
    .m_pad = M_PAD,
    .panels = PANELS,
    .max_n = 1,
    .weight_bytes = WEIGHT_BYTES,
    .operand_bytes = OPERAND_BYTES,
    .pack_activations = pack_activations,
    .run = run,
};
