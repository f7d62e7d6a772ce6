// bg_t5_gemv_m9_k128_bm5_bk64_pf2048__dotprod
//
// gemv of W [9, 128] in layout t5_bm5_bk64 on dotprod.
// Generated from templates/t5/dotprod.c.j2 by:
//   bitgen gen bg_t5_gemv_m9_k128_bm5_bk64_pf2048__dotprod

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

// The parts of five rows are multiplied in five sums.
static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)n, (void)scratch;
  w += (size_t)p0 * PANEL_BYTES;
  for (int32_t p = p0; p < p1; p++) {
    int32x4_t acc[PARTS];
    for (int i = 0; i < PARTS; i++)
      acc[i] = vdupq_n_s32(0);
    for (int32_t b = 0; b < BLOCKS; b++) {
      __builtin_prefetch(w + PREFETCH);
      for (int quarter = 0; quarter < 4; quarter++, w += VB) {
        const int8x16_t x = load(operand + HEADER + b * BK + quarter * VB);
        int8x16_t u[PARTS];
        decode(w, u);
        for (int i = 0; i < PARTS; i++)
          acc[i] = vdotq_s32(acc[i], u[i], x);
      }
    }
    int32_t sums[PARTS];
    for (int i = 0; i < PARTS; i++)
      sums[i] = vaddvq_s32(acc[i]);
    for (int r = 0; r < ROWS; r++)
      y[p * ROWS + r] = -operand_sum(operand);
    add_rows(sums, y + p * ROWS);
  }
}

const bg_kernel bg_t5_gemv_m9_k128_bm5_bk64_pf2048__dotprod = {
    .symbol = "bg_t5_gemv_m9_k128_bm5_bk64_pf2048__dotprod",
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
