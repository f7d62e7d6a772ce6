// bg_i2_s_gemm_m15_k128_bm4_bk64_nr4_kc64__i8mm
//
// gemm of W [15, 128] in layout i2_s_bm4_bk64 on i8mm.
// Generated from templates/i2_s/i8mm.c.j2 by:
//   bitgen gen bg_i2_s_gemm_m15_k128_bm4_bk64_nr4_kc64__i8mm

#include <arm_neon.h>
#include <string.h>

#include "kernel.h"

enum { M = 15, K = 128, M_PAD = 16, K_PAD = 128 };
enum { BM = 4, BK = 64, PANELS = 4 };
enum { WEIGHT_BYTES = 512, OPERAND_BYTES = 192 };
enum { NR = 4, KC = 64 };
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

// MR rows by NR tokens at a time, their sums in registers. A unit is one vector: STEP columns of each of UNIT
// rows or tokens. Units lie in the order in which the micro-kernel reads them. The codes of MC rows over KC
// columns are unpacked once and stay in the second-level cache while all tokens pass over them; the
// activations of NR tokens over KC columns stay in the first (Goto and van de Geijn, "Anatomy of
// High-Performance Matrix Multiplication", 2008).
enum { MR = 8, MC = 2048, UNIT = 2, ROW_BLOCKS = MC / MR };
enum { STEP = VB / UNIT, STEPS = KC / STEP, ROW_UNITS = MR / UNIT, TOKEN_UNITS = NR / UNIT };
_Static_assert(MR % UNIT == 0 && NR % UNIT == 0, "whole units");
_Static_assert(MR % BM == 0 && KC % BK == 0, "whole panels and whole blocks");

typedef int8x16_t row_units[ROW_UNITS], token_units[TOKEN_UNITS]; // one step

typedef struct {
  row_units codes[ROW_BLOCKS][STEPS];
  token_units x[STEPS];
} workspace;

// Rows of two halves become columns.
static inline void interleave(int8x16_t v[UNIT]) {
  const int64x2_t a = (int64x2_t)v[0], b = (int64x2_t)v[1];
  v[0] = (int8x16_t)vzip1q_s64(a, b);
  v[1] = (int8x16_t)vzip2q_s64(a, b);
}

// MR rows by `units` units of tokens: the lanes of an instruction are two tokens by two rows.
static inline __attribute__((always_inline)) void micro_kernel(const row_units *w, const token_units *x,
                                                               int32_t steps, int units, int32_t (*out)[MR]) {
  int32x4_t acc[TOKEN_UNITS][ROW_UNITS];
  for (int u = 0; u < units; u++)
    for (int r = 0; r < ROW_UNITS; r++)
      acc[u][r] = vdupq_n_s32(0);
  for (int32_t i = 0; i < steps; i++)
    for (int u = 0; u < units; u++)
      for (int r = 0; r < ROW_UNITS; r++)
        acc[u][r] = vmmlaq_s32(acc[u][r], x[i][u], w[i][r]);
  for (int u = 0; u < units; u++)
    for (int r = 0; r < ROW_UNITS; r++) {
      vst1_s32(&out[u * UNIT][r * UNIT], vget_low_s32(acc[u][r]));
      vst1_s32(&out[u * UNIT + 1][r * UNIT], vget_high_s32(acc[u][r]));
    }
}

static void call_micro_kernel(const row_units *w, const token_units *x, int32_t steps, int32_t units,
                              int32_t (*sums)[MR]) {
  switch (units) {
  case 1:
    micro_kernel(w, x, steps, 1, sums);
    break;
  case 2:
    micro_kernel(w, x, steps, 2, sums);
    break;
  }
}

// Codes 0..2 of the four quarters of a block, whatever order its bytes are in.
static inline void decode(int8x16_t bytes, int8x16_t c[4]) {
  const uint8x16_t v = vreinterpretq_u8_s8(bytes), low2 = vdupq_n_u8(3);
  c[0] = vreinterpretq_s8_u8(vshrq_n_u8(v, 6));
  c[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 4), low2));
  c[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 2), low2));
  c[3] = vreinterpretq_s8_u8(vandq_u8(v, low2));
}

// The codes of MR rows over `blocks` blocks from column k0 on; rows from row_end on repeat the last.
static void unpack(const uint8_t *w, int32_t row, int32_t row_end, int32_t k0, int32_t blocks,
                   row_units *out) {
  for (int u = 0; u < ROW_UNITS; u++) {
    const uint8_t *from[UNIT];
    for (int i = 0; i < UNIT; i++) {
      const int32_t r = row + u * UNIT + i < row_end ? row + u * UNIT + i : row_end - 1;
      from[i] = w + (size_t)(r / BM) * PANEL_BYTES + (size_t)k0 / 4 * BM + r % BM * VB;
    }
    for (int32_t b = 0; b < blocks; b++) {
      int8x16_t v[UNIT], c[4];
      for (int i = 0; i < UNIT; i++)
        v[i] = load(from[i] + (size_t)b * BM * VB);
      interleave(v);
      for (int i = 0; i < UNIT; i++) {
        decode(v[i], c);
        for (int quarter = 0; quarter < 4; quarter++)
          out[(b * 4 + quarter) * UNIT + i][u] = c[quarter];
      }
    }
  }
}

// The activations of `units` units of tokens over `vectors` times VB columns; those beyond n repeat the last.
static void arrange(const uint8_t *x, int32_t n, int32_t units, int32_t vectors, token_units *out) {
  for (int32_t u = 0; u < units; u++) {
    const uint8_t *from[UNIT];
    for (int i = 0; i < UNIT; i++)
      from[i] = x + (size_t)(u * UNIT + i < n ? u * UNIT + i : n - 1) * OPERAND_BYTES;
    for (int32_t j = 0; j < vectors; j++) {
      int8x16_t v[UNIT];
      for (int i = 0; i < UNIT; i++)
        v[i] = load(from[i] + j * VB);
      interleave(v);
      for (int i = 0; i < UNIT; i++)
        out[j * UNIT + i][u] = v[i];
    }
  }
}

// Rows [row, row_end), whose codes are unpacked, by n <= NR tokens: y [t][M_PAD] gains the products.
static void macro_kernel(const uint8_t *x, int32_t n, int32_t *y, int32_t row, int32_t row_end,
                         int32_t columns, workspace *s) {
  const int32_t units = (n + UNIT - 1) / UNIT;
  arrange(x, n, units, columns / VB, s->x);
  for (int32_t i = 0; row < row_end; i++, row += MR) {
    const int32_t rows = row_end - row < MR ? row_end - row : MR;
    int32_t sums[NR][MR];
    call_micro_kernel(s->codes[i], s->x, columns / STEP, units, sums);
    for (int32_t t = 0; t < n; t++)
      for (int32_t r = 0; r < rows; r++)
        y[(size_t)t * M_PAD + row + r] += sums[t][r];
  }
}

// Rows [row0, row_end), at most MC of them, by all tokens.
static void multiply_rows(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t row0,
                          int32_t row_end, workspace *s) {
  const int32_t units = (n + UNIT - 1) / UNIT, parts = (units + TOKEN_UNITS - 1) / TOKEN_UNITS;
  for (int32_t t = 0; t < n; t++) {
    const int32_t sum = operand_sum(operand + (size_t)t * OPERAND_BYTES);
    for (int32_t row = row0; row < row_end; row++)
      y[(size_t)t * M_PAD + row] = -sum;
  }
  for (int32_t k0 = 0; k0 < K_PAD; k0 += KC) {
    const int32_t columns = K_PAD - k0 < KC ? K_PAD - k0 : KC;
    for (int32_t i = 0, row = row0; row < row_end; i++, row += MR)
      unpack(w, row, row_end, k0, columns / BK, s->codes[i]);
    for (int32_t g = 0, t = 0, t_end; g < parts; g++, t = t_end) { // as even as possible
      t_end = (int32_t)((int64_t)units * (g + 1) / parts) * UNIT;
      macro_kernel(operand + (size_t)t * OPERAND_BYTES + HEADER + k0, (t_end < n ? t_end : n) - t,
                   y + (size_t)t * M_PAD, row0, row_end, columns, s);
    }
  }
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  for (int32_t row = p0 * BM, row_end; row < p1 * BM; row = row_end) {
    row_end = p1 * BM - row < MC ? p1 * BM : row + MC;
    multiply_rows(w, operand, n, y, row, row_end, scratch);
  }
}

const bg_kernel bg_i2_s_gemm_m15_k128_bm4_bk64_nr4_kc64__i8mm = {
    .symbol = "bg_i2_s_gemm_m15_k128_bm4_bk64_nr4_kc64__i8mm",
    .m = M,
    .k = K,
    .m_pad = M_PAD,
    .panels = PANELS,
    .max_n = INT32_MAX,
    .weight_bytes = WEIGHT_BYTES,
    .operand_bytes = OPERAND_BYTES,
    .scratch_bytes = sizeof(workspace),
    .pack_activations = pack_activations,
    .run = run,
};
