// bg_i2_s_gemv_m7_k128_bm4_bk64_pf2048__dotprod
//
// gemv of W [7, 128] in layout i2_s_bm4_bk64 on dotprod.
// Generated from templates/i2_s/dotprod.c.j2 by:
//   bitgen gen bg_i2_s_gemv_m7_k128_bm4_bk64_pf2048__dotprod

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

// Codes 0..2 need not leave their place in the byte: those of the middle quarters are multiplied as 4 and 16
// times their value, with a sum of their own, and the sums divided in the end.
typedef struct {
  int32x4_t ones, fours, sixteens;
} sums;
_Static_assert(K_PAD <= 1 << 22, "a lane gains 16 * 2 * 128 * 4 a block at most: its sum is exact");

// The rows of a panel are interleaved block by block: one sequential stream of weights, and each load of the
// activations serves BM rows.
static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)n, (void)scratch;
  w += (size_t)p0 * PANEL_BYTES;
  for (int32_t p = p0; p < p1; p++) {
    sums acc[BM];
    for (int r = 0; r < BM; r++)
      acc[r].ones = acc[r].fours = acc[r].sixteens = vdupq_n_s32(0);
    for (int32_t b = 0; b < BLOCKS; b++) {
      const uint8_t *q = operand + HEADER + b * BK;
      const int8x16_t x[4] = {load(q), load(q + VB), load(q + 2 * VB), load(q + 3 * VB)};
      for (int r = 0; r < BM; r++, w += VB) {
        if (r % 4 == 0)
          __builtin_prefetch(w + PREFETCH);
        const int8x16_t v = load(w), first = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(v), 6));
        acc[r].ones = vdotq_s32(acc[r].ones, first, x[0]);
        acc[r].sixteens = vdotq_s32(acc[r].sixteens, vandq_s8(v, vdupq_n_s8(3 << 4)), x[1]);
        acc[r].fours = vdotq_s32(acc[r].fours, vandq_s8(v, vdupq_n_s8(3 << 2)), x[2]);
        acc[r].ones = vdotq_s32(acc[r].ones, vandq_s8(v, vdupq_n_s8(3)), x[3]);
      }
    }
    for (int r = 0; r < BM; r++) {
      const int32x4_t lanes = vsraq_n_s32(vsraq_n_s32(acc[r].ones, acc[r].fours, 2), acc[r].sixteens, 4);
      y[p * BM + r] = vaddvq_s32(lanes) - operand_sum(operand);
    }
  }
}

const bg_kernel bg_i2_s_gemv_m7_k128_bm4_bk64_pf2048__dotprod = {
    .symbol = "bg_i2_s_gemv_m7_k128_bm4_bk64_pf2048__dotprod",
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
