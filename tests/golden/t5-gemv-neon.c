// bg_t5_gemv_m9_k128_bm5_bk64_pf2048__neon
//
// gemv of W [9, 128] in layout t5_bm5_bk64 on neon.
// Generated from templates/t5/neon.c.j2 by:
//   bitgen gen bg_t5_gemv_m9_k128_bm5_bk64_pf2048__neon

#include <arm_neon.h>
#include <string.h>

#include "kernel.h"

enum { M = 9, K = 128, M_PAD = 10, K_PAD = 128 };
enum { BM = 5, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 256, OPERAND_BYTES = 192 };
enum { PREFETCH = 2048 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

enum { VB = 16 };
enum { ROWS = 5, BLOCKS = K_PAD / BK, PANEL_BYTES = K_PAD };
_Static_assert(BM == ROWS && BK == 4 * VB && K_PAD % BK == 0, "a panel is five rows, a block four vectors");

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

// A byte holds the codes c = w + 1 of one column of five rows. With pair = 3 c0 + c1, rest = 9 c2 + 3 c3 + c4
// it is 8 rest + 8 - pair, or 216 + rest where the pair is 0. Since bytes wrap around,
//   rest = min(byte / 8, byte - 216)   and   pair = max(8 - (byte - 8 rest), 0).
// The codes need not be taken apart: five parts, linear in the codes and cheap to find, are multiplied with
// the activations, and the sums of the rows follow from the sums of the parts.
enum {
  PAIR,   // 3 c0 + c1, 0..8
  FIRST,  // c0
  REST,   // 9 c2 + 3 c3 + c4, 0..26
  LOW,    // 3 c3 + c4, 0..8
  FOURTH, // c3
  PARTS
};

// y of five rows gains their sums.
static inline void add_rows(const int32_t s[PARTS], int32_t *y) {
  y[0] += s[FIRST];
  y[1] += s[PAIR] - 3 * s[FIRST];
  y[2] += (s[REST] - s[LOW]) / 9;
  y[3] += s[FOURTH];
  y[4] += s[LOW] - 3 * s[FOURTH];
}

enum { NR = 1 };

static inline int8x16_t load(const uint8_t *p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }

static const uint8_t third[16] = {0, 0, 0, 1, 1, 1, 2, 2, 2};
static const uint8_t mod9[32] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4,
                                 5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8};

static inline void decode(const uint8_t *w, int8x16_t u[PARTS]) {
  const uint8x16_t v = vld1q_u8(w), thirds = vld1q_u8(third);
  const uint8x16_t rest = vminq_u8(vshrq_n_u8(v, 3), vsubq_u8(v, vdupq_n_u8(216)));
  const uint8x16_t pair = vqsubq_u8(vdupq_n_u8(8), vmlsq_u8(v, rest, vdupq_n_u8(8)));
  const uint8x16_t low = vqtbl2q_u8(vld1q_u8_x2(mod9), rest);
  u[PAIR] = vreinterpretq_s8_u8(pair);
  u[FIRST] = vreinterpretq_s8_u8(vqtbl1q_u8(thirds, pair));
  u[REST] = vreinterpretq_s8_u8(rest);
  u[LOW] = vreinterpretq_s8_u8(low);
  u[FOURTH] = vreinterpretq_s8_u8(vqtbl1q_u8(thirds, low));
}

// Partial sums are int16, in one vector for the low and one for the high halves. A lane gains 4 products of a
// part and an activation -128..127 from each block. REST is 0..26 and is widened after every block; the
// others, 0..8, after SPAN blocks.
enum { SPAN = 8 };
_Static_assert(BK <= 144 && 4 * 26 * 128 <= 32768, "int16 sums over a block are exact");
_Static_assert(SPAN * 4 * 8 * 128 <= 32768, "and those of smaller parts over SPAN blocks");

// acc += u times x, the low half's products in acc[0] and the high half's in acc[1].
static inline void multiply_add(int16x8_t acc[2], int8x16_t u, int8x16_t x) {
  acc[0] = vmlal_s8(acc[0], vget_low_s8(u), vget_low_s8(x));
  acc[1] = vmlal_high_s8(acc[1], u, x);
}

static inline int32x4_t widen_add(int32x4_t total, const int16x8_t acc[2]) {
  return vpadalq_s16(vpadalq_s16(total, acc[0]), acc[1]);
}

// Five rows by `tokens` <= NR tokens over `blocks` blocks: bytes are decoded to parts once for all tokens.
// y [t][M_PAD] gains the products. Loops whose sums must stay in registers ask to be unrolled: not all
// versions of clang see that by themselves.
static inline __attribute__((always_inline)) void micro_kernel(const uint8_t *w, const uint8_t *x,
                                                               int32_t blocks, int tokens, int32_t *y) {
  int32x4_t total[NR][PARTS];
  int16x8_t acc[NR][PARTS][2];
  for (int t = 0; t < tokens; t++)
    for (int i = 0; i < PARTS; i++)
      total[t][i] = vdupq_n_s32(0);
  while (blocks > 0) {
    const int32_t span = blocks < SPAN ? blocks : SPAN;
    for (int t = 0; t < tokens; t++)
      for (int i = 0; i < PARTS; i++)
        acc[t][i][0] = acc[t][i][1] = vdupq_n_s16(0);
    for (int32_t b = 0; b < span; b++) {
      __builtin_prefetch(w + PREFETCH);
#pragma unroll
      for (int quarter = 0; quarter < 4; quarter++, w += VB, x += VB) {
        int8x16_t u[PARTS];
        decode(w, u);
#pragma unroll
        for (int t = 0; t < tokens; t++) {
          const int8x16_t xt = load(x + (size_t)t * OPERAND_BYTES);
#pragma unroll
          for (int i = 0; i < PARTS; i++)
            multiply_add(acc[t][i], u[i], xt);
        }
      }
      for (int t = 0; t < tokens; t++) {
        total[t][REST] = widen_add(total[t][REST], acc[t][REST]);
        acc[t][REST][0] = acc[t][REST][1] = vdupq_n_s16(0);
      }
    }
    for (int t = 0; t < tokens; t++)
      for (int i = 0; i < PARTS; i++)
        total[t][i] = widen_add(total[t][i], acc[t][i]);
    blocks -= span;
  }
  for (int t = 0; t < tokens; t++) {
    int32_t parts[PARTS];
    for (int i = 0; i < PARTS; i++)
      parts[i] = vaddvq_s32(total[t][i]);
    add_rows(parts, y + (size_t)t * M_PAD);
  }
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)n, (void)scratch;
  for (int32_t p = p0; p < p1; p++) {
    for (int r = 0; r < ROWS; r++)
      y[p * ROWS + r] = -operand_sum(operand);
    micro_kernel(w + (size_t)p * PANEL_BYTES, operand + HEADER, BLOCKS, NR, y + p * ROWS);
  }
}

const bg_kernel bg_t5_gemv_m9_k128_bm5_bk64_pf2048__neon = {
    .symbol = "bg_t5_gemv_m9_k128_bm5_bk64_pf2048__neon",
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
