// bg_tl1_gemm_m127_k128_bm64_bk64__neon
//
// gemm of W [127, 128] in layout tl1_bm64_bk64 on neon.
// Generated from templates/tl1/neon.c.j2 by:
//   bitgen gen bg_tl1_gemm_m127_k128_bm64_bk64__neon

#include <arm_neon.h>
#include <string.h>

#include "kernel.h"

enum { M = 127, K = 128, M_PAD = 128, K_PAD = 128 };
enum { BM = 64, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 4096, OPERAND_BYTES = 2048 };
enum { NR = 1, KC = 128 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

// A table of 16 int16 sums serves each pair of columns.
enum { TABLE = 32 };
_Static_assert(BM % 32 == 0 && BK % 8 == 0 && K_PAD % BK == 0, "32 rows and 8 columns a step; whole tiles");

// Sums over one tile are int16. An entry of a table is a sum of 2 activations of magnitude <= 128.
_Static_assert(BK <= 254, "what space.py allows");
_Static_assert(BK / 2 * (2 * 128) <= 32767, "int16 sums of a tile are exact");

// Operand: a table for each pair. Entry i is the signed sum that i - 4 in balanced ternary spells, its digits
// for q[0], q[1] from the most significant down. A table is 16 high bytes, then 16 low bytes.
static void pack_activations(const int8_t *q, int32_t n, uint8_t *operand) {
  static const int16_t digits[2][16] = {{-1, -1, -1, 0, 0, 0, 1, 1, 1}, {-1, 0, 1, -1, 0, 1, -1, 0, 1}};
  const int16x8_t a0 = vld1q_s16(digits[0]), a1 = vld1q_s16(digits[0] + 8);
  const int16x8_t b0 = vld1q_s16(digits[1]), b1 = vld1q_s16(digits[1] + 8);
  for (int32_t t = 0; t < n; t++, q += K, operand += OPERAND_BYTES) {
    int8_t x[K_PAD] = {0};
    memcpy(x, q, K);
    for (int32_t g = 0; g < K_PAD / 2; g++) {
      const int16_t q0 = x[2 * g], q1 = x[2 * g + 1];
      const int8x16_t s0 = vreinterpretq_s8_s16(vmlaq_n_s16(vmulq_n_s16(a0, q0), b0, q1));
      const int8x16_t s1 = vreinterpretq_s8_s16(vmlaq_n_s16(vmulq_n_s16(a1, q0), b1, q1));
      uint8_t *table = operand + (size_t)g * TABLE;
      vst1q_u8(table, vreinterpretq_u8_s8(vuzp2q_s8(s0, s1)));
      vst1q_u8(table + 16, vreinterpretq_u8_s8(vuzp1q_s8(s0, s1)));
    }
  }
}

// Sums of 16 rows, of the entries' low bytes and of their high ones, which are -1, 0 or 1: bytes suffice.
typedef struct {
  uint16x8_t low[2]; // rows 0-7 and rows 8-15
  int8x16_t high;
} rows;
_Static_assert(BK / 2 <= INT8_MAX, "int8 sums of the high bytes of a tile are exact");

// acc and the entries of 16 rows.
static inline rows look_up(rows acc, const uint8_t *table, uint8x16_t index) {
  const uint8x16_t high = vqtbl1q_u8(vld1q_u8(table), index), low = vqtbl1q_u8(vld1q_u8(table + 16), index);
  acc.high = vaddq_s8(acc.high, vreinterpretq_s8_u8(high));
  acc.low[0] = vaddw_u8(acc.low[0], vget_low_u8(low));
  acc.low[1] = vaddw_high_u8(acc.low[1], low);
  return acc;
}

// acc and the entries of 16 rows for two pairs of columns: a byte holds both, the earlier one in its high
// nibble.
static inline rows look_up_two(rows acc, const uint8_t *table, const uint8_t *w) {
  const uint8x16_t v = vld1q_u8(w);
  acc = look_up(acc, table, vshrq_n_u8(v, 4));
  return look_up(acc, table + TABLE, vandq_u8(v, vdupq_n_u8(15)));
}

// y [16] += 16 rows.
static inline void widen_add(int32_t *y, rows acc) {
  const int16x8_t high[2] = {vmovl_s8(vget_low_s8(acc.high)), vmovl_high_s8(acc.high)};
  for (int i = 0; i < 2; i++, y += 8) {
    const int16x8_t v = vaddq_s16(vshlq_n_s16(high[i], 8), vreinterpretq_s16_u16(acc.low[i]));
    vst1q_s32(y, vaddw_s16(vld1q_s32(y), vget_low_s16(v)));
    vst1q_s32(y + 4, vaddw_high_s16(vld1q_s32(y + 4), v));
  }
}

// y [BM] += one tile: per 32 rows and 8 columns, 16 rows by 2 bytes and then the other 16.
static void add_tile(const uint8_t *w, const uint8_t *tables, int32_t *y) {
  for (int32_t row = 0; row < BM; row += 32) {
    const rows zero = {{vdupq_n_u16(0), vdupq_n_u16(0)}, vdupq_n_s8(0)};
    rows top = zero, bottom = zero;
    const uint8_t *table = tables;
    for (int32_t g = 0; g < BK / 2; g += 4, table += 4 * TABLE, w += 64) {
      top = look_up_two(top, table, w);
      top = look_up_two(top, table + 2 * TABLE, w + 16);
      bottom = look_up_two(bottom, table, w + 32);
      bottom = look_up_two(bottom, table + 2 * TABLE, w + 48);
    }
    widen_add(y + row, top);
    widen_add(y + row + 16, bottom);
  }
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)scratch;
  for (int32_t p = p0; p < p1; p++) {
    int32_t *yp = y + (size_t)p * BM;
    for (int32_t t = 0; t < n; t++)
      memset(yp + (size_t)t * M_PAD, 0, BM * sizeof *y);
    // A tile stays in the first-level cache while all tokens pass over it.
    for (int32_t kt = 0; kt < K_PAD / BK; kt++) {
      const uint8_t *tile = w + ((size_t)p * (K_PAD / BK) + kt) * (BM * BK / 4);
      for (int32_t t = 0; t < n; t++)
        add_tile(tile, operand + (size_t)t * OPERAND_BYTES + kt * (BK / 2) * TABLE, yp + (size_t)t * M_PAD);
    }
  }
}

const bg_kernel bg_tl1_gemm_m127_k128_bm64_bk64__neon = {
    .symbol = "bg_tl1_gemm_m127_k128_bm64_bk64__neon",
    .m = M,
    .k = K,
    .m_pad = M_PAD,
    .panels = PANELS,
    .max_n = INT32_MAX,
    .weight_bytes = WEIGHT_BYTES,
    .operand_bytes = OPERAND_BYTES,
    .pack_activations = pack_activations,
    .run = run,
};
