// bg_i2_g_gemm_m31_k128_s64_bm16_bk64_nr4__dotprod
//
// gemm of W [31, 128] in layout i2_g_bm16_bk64 on dotprod.
// Generated from templates/i2_g/dotprod.c.j2 by:
//   bitgen gen bg_i2_g_gemm_m31_k128_s64_bm16_bk64_nr4__dotprod

#include <arm_neon.h>
#include <string.h>

#include "kernel.h"

enum { ROWS = 4, TOGETHER = 1 }; // rows of a vector, vectors that prefill takes together
enum { M = 31, K = 128, M_PAD = 32, K_PAD = 128 };
enum { BM = 16, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 1152, OPERAND_BYTES = 192 };
enum { NR = 4, KC = 128 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

enum { GROUP = BK, GROUPS = K / GROUP, STEP = 16, VB = ROWS * STEP / 4, VECTORS = BM / ROWS };
enum { STEP_BYTES = VECTORS * VB, COLUMN_BYTES = 1 }; // of a panel, of the operand
enum { PANEL_SCALES = GROUPS * BM * 2, PANEL_BYTES = PANEL_SCALES + BM * K / 4 };
_Static_assert(K == K_PAD && GROUP % STEP == 0, "whole groups, and whole steps of four bytes for each row");
enum { MV = TOGETHER };
_Static_assert(BM % ROWS == 0 && VECTORS % MV == 0, "a step is whole vectors, a panel whole passes");

// One token's operand: float steps [GROUPS] of the activations, int32 sums [GROUPS] of q, then q. A sum
// undoes the + 1 of the codes: sum (w + 1) q - sum q = sum w q.
enum { HEADER = (GROUPS * 8 + 63) / 64 * 64 };
_Static_assert(HEADER + K <= OPERAND_BYTES, "the operand holds all of it");

static void pack_activations(const int8_t *q, int32_t n, uint8_t *operand) {
  const int32_t floats = GROUPS * (int32_t)sizeof(float);
  for (int32_t t = 0; t < n; t++, q += K + floats, operand += OPERAND_BYTES) {
    int32_t sums[GROUPS] = {0};
    for (int32_t g = 0; g < GROUPS; g++)
      for (int32_t i = 0; i < GROUP; i++)
        sums[g] += q[g * GROUP + i];
    memset(operand, 0, OPERAND_BYTES);
    memcpy(operand, q + K, floats);
    memcpy(operand + floats, sums, sizeof sums);
    memcpy(operand + HEADER, q, K);
  }
}

// A lane is a row.
typedef int32_t ints __attribute__((vector_size(4 * ROWS)));
typedef float floats __attribute__((vector_size(4 * ROWS)));
typedef int8x16_t vector;
_Static_assert(VB == sizeof(vector), "a vector is a step of its rows");

// Codes 0..2 of the four quarters of a step: of each row four columns side by side.
static inline void decode(const uint8_t *w, vector c[4]) {
  const uint8x16_t v = vld1q_u8(w), low2 = vdupq_n_u8(3);
  c[0] = vreinterpretq_s8_u8(vshrq_n_u8(v, 6));
  c[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 4), low2));
  c[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 2), low2));
  c[3] = vreinterpretq_s8_u8(vandq_u8(v, low2));
}

static inline floats widen(const uint8_t *halves) {
  return (floats)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(halves)));
}

typedef int32x4_t row_sums;

// Four codes of each of the rows times the same four activations, quarter by quarter.
static inline row_sums add_products(row_sums acc, const vector c[4], const uint8_t *q) {
  const int8x16_t x = vreinterpretq_s8_u8(vld1q_u8(q));
  acc = vdotq_laneq_s32(acc, c[0], x, 0);
  acc = vdotq_laneq_s32(acc, c[1], x, 1);
  acc = vdotq_laneq_s32(acc, c[2], x, 2);
  return vdotq_laneq_s32(acc, c[3], x, 3);
}

static inline ints rows(row_sums acc) { return (ints)acc; }

// One step of MV vectors of rows by `tokens` <= NR tokens.
static inline __attribute__((always_inline)) void add_step(row_sums acc[NR][MV], const uint8_t *w,
                                                           const uint8_t *q, int tokens) {
#pragma unroll
  for (int v = 0; v < MV; v++) {
    vector c[4];
    decode(w + v * VB, c);
#pragma unroll
    for (int t = 0; t < tokens; t++)
      acc[t][v] = add_products(acc[t][v], c, q + (size_t)t * OPERAND_BYTES);
  }
}

// MV vectors of a panel's rows by `tokens` <= NR tokens. Within a group of columns sums are exact; then, in
// float,
//   total = total + sum * (scale * step)
// with the row's scale and the token's step, group by group, each operation rounded: in every kernel alike.
static inline __attribute__((always_inline)) void micro_kernel(const uint8_t *scales, const uint8_t *w,
                                                               const uint8_t *x, int tokens, int32_t *y) {
  floats total[NR][MV] = {0};
  for (int32_t g = 0; g < GROUPS; g++, scales += BM * 2) {
    row_sums acc[NR][MV] = {0};
    for (int32_t i = g * GROUP; i < (g + 1) * GROUP; i += STEP, w += STEP_BYTES) {
      add_step(acc, w, x + HEADER + i * COLUMN_BYTES, tokens);
    }
#pragma clang loop unroll(full)
    for (int v = 0; v < MV; v++) {
      const floats scale = widen(scales + v * ROWS * 2);
#pragma clang loop unroll(full)
      for (int t = 0; t < tokens; t++) {
        const uint8_t *header = x + (size_t)t * OPERAND_BYTES;
        float step;
        int32_t sum;
        memcpy(&step, header + g * 4, sizeof step);
        memcpy(&sum, header + (GROUPS + g) * 4, sizeof sum);
        total[t][v] += __builtin_convertvector(rows(acc[t][v]) - sum, floats) * (scale * step);
      }
    }
  }
  for (int t = 0; t < tokens; t++)
    memcpy(y + (size_t)t * M_PAD, total[t], sizeof total[t]);
}

static void macro_kernel(const uint8_t *w, const uint8_t *x, int32_t tokens, int32_t *y, int32_t p,
                         int32_t p_end) {
  for (int32_t i = p * VECTORS; i < p_end * VECTORS; i += MV) {
    const uint8_t *scales = w + (size_t)(i / VECTORS) * PANEL_BYTES, *codes = scales + PANEL_SCALES;
    const int32_t v = i % VECTORS;
    switch (tokens) {
    case 1:
      micro_kernel(scales + v * ROWS * 2, codes + v * VB, x, 1, y + i * ROWS);
      break;
    case 2:
      micro_kernel(scales + v * ROWS * 2, codes + v * VB, x, 2, y + i * ROWS);
      break;
    case 3:
      micro_kernel(scales + v * ROWS * 2, codes + v * VB, x, 3, y + i * ROWS);
      break;
    case 4:
      micro_kernel(scales + v * ROWS * 2, codes + v * VB, x, 4, y + i * ROWS);
      break;
    }
  }
}

// The weights of MC rows stay in the second-level cache while all tokens pass over them.
enum { MC = 3632, PANEL_BLOCK = MC / BM };

static void products(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0,
                     int32_t p1) {
  const int32_t parts = (n + NR - 1) / NR; // of the tokens, as even as possible
  for (int32_t p = p0; p < p1; p += PANEL_BLOCK) {
    const int32_t p_end = p1 - p < PANEL_BLOCK ? p1 : p + PANEL_BLOCK;
    for (int32_t g = 0, t = 0, t_end; g < parts; g++, t = t_end) {
      t_end = (int32_t)((int64_t)n * (g + 1) / parts);
      macro_kernel(w, operand + (size_t)t * OPERAND_BYTES, t_end - t, y + (size_t)t * M_PAD, p, p_end);
    }
  }
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)scratch;
  products(w, operand, n, y, p0, p1);
}

// A row as floats, scale times code: exactly, as a code is -1, 0 or 1.
static void unpack_row(const uint8_t *w, int32_t row, float *out) {
  typedef uint8_t bytes __attribute__((vector_size(4)));
  typedef int32_t four __attribute__((vector_size(16)));
  typedef int32_t codes __attribute__((vector_size(4 * STEP)));
  typedef float values __attribute__((vector_size(4 * STEP)));
  const codes shift = {6, 6, 6, 6, 4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0};
  const int32_t r = row % BM;
  const uint8_t *scales = w + (size_t)(row / BM) * PANEL_BYTES, *at = scales + PANEL_SCALES + r * STEP / 4;
  for (int32_t g = 0; g < GROUPS; g++) {
    const floats of_rows = widen(scales + (g * BM + r / ROWS * ROWS) * 2);
    const float scale = of_rows[r % ROWS];
    for (int32_t i = 0; i < GROUP; i += STEP, at += BM * STEP / 4, out += STEP) {
      bytes packed;
      memcpy(&packed, at, sizeof packed);
      const four b = __builtin_convertvector(packed, four);
      const codes c = __builtin_shufflevector(b, b, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
      const values v = __builtin_convertvector((c >> shift & 3) - 1, values) * scale;
      memcpy(out, &v, sizeof v);
    }
  }
}

const bg_kernel bg_i2_g_gemm_m31_k128_s64_bm16_bk64_nr4__dotprod = {
    .symbol = "bg_i2_g_gemm_m31_k128_s64_bm16_bk64_nr4__dotprod",
    .m = M,
    .k = K,
    .group = GROUP,
    .m_pad = M_PAD,
    .panels = PANELS,
    .max_n = INT32_MAX,
    .weight_bytes = WEIGHT_BYTES,
    .operand_bytes = OPERAND_BYTES,
    .pack_activations = pack_activations,
    .run = run,
    .unpack_row = unpack_row,
};
