// bg_i2_g_gemm_m31_k128_s64_bm16_bk64_nr4_kc64__i8mm
//
// gemm of W [31, 128] in layout i2_g_bm16_bk64 on i8mm.
// Generated from templates/i2_g/i8mm.c.j2 by:
//   bitgen gen bg_i2_g_gemm_m31_k128_s64_bm16_bk64_nr4_kc64__i8mm

#include <arm_neon.h>
#include <string.h>

#include "kernel.h"

enum { ROWS = 4, TOGETHER = 1 }; // rows of a vector, vectors that prefill takes together
enum { M = 31, K = 128, M_PAD = 32, K_PAD = 128 };
enum { BM = 16, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 1152, OPERAND_BYTES = 192 };
enum { NR = 4, KC = 64 };
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

// MR rows by NR tokens at a time, their sums in registers. A unit is one vector: SLICE columns of each of UNIT
// rows or tokens. Units lie in the order in which the micro-kernel reads them. The codes of MC rows over KC
// columns are unpacked once and stay in the second-level cache while all tokens pass over them; the
// activations of NR tokens over KC columns stay in the first (Goto and van de Geijn, "Anatomy of
// High-Performance Matrix Multiplication", 2008).
enum { MR = 8, MC = 2048, UNIT = 2, ROW_BLOCKS = MC / MR };
enum { SLICE = VB / UNIT, SLICES = KC / SLICE, ROW_UNITS = MR / UNIT, TOKEN_UNITS = NR / UNIT };
enum { GROUP_SLICES = GROUP / SLICE, BLOCK_GROUPS = KC / GROUP };
_Static_assert(MR % UNIT == 0 && NR % UNIT == 0 && MR % ROWS == 0 && ROWS % UNIT == 0, "whole units");
_Static_assert(KC % GROUP == 0 && GROUP % VB == 0, "whole groups of whole vectors");

typedef int8x16_t row_units[ROW_UNITS], token_units[TOKEN_UNITS]; // one slice

typedef struct {
  row_units codes[ROW_BLOCKS][SLICES];
  float scale[ROW_BLOCKS][BLOCK_GROUPS][MR];
  token_units x[SLICES];
  float step[BLOCK_GROUPS][NR];
} workspace;

// Rows of two halves become columns.
static inline void interleave(int8x16_t v[UNIT]) {
  const int64x2_t a = (int64x2_t)v[0], b = (int64x2_t)v[1];
  v[0] = (int8x16_t)vzip1q_s64(a, b);
  v[1] = (int8x16_t)vzip2q_s64(a, b);
}

// The weights of the v-th four rows over a step: two slices of eight columns, of two rows to a unit.
static inline void place_units(const int8x16_t c[4], int v, row_units *out) {
  for (int half = 0; half < 2; half++) {
    const int32x4_t a = vreinterpretq_s32_s8(c[2 * half]), b = vreinterpretq_s32_s8(c[2 * half + 1]);
    out[half][2 * v] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
    out[half][2 * v + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
  }
}

typedef float32x4_t totals[TOKEN_UNITS][ROW_UNITS]; // lanes: two tokens by two rows

// The two totals of a token and the r-th unit of rows.
static inline float *total_at(float32x4_t (*total)[ROW_UNITS], int32_t t, int r) {
  return (float *)&total[t / 2][r] + t % 2 * 2;
}

// A group of MR rows by `units` units of tokens.
static inline __attribute__((always_inline)) void add_group(const row_units *w, const token_units *x,
                                                            int units, const float *scale, const float *step,
                                                            float32x4_t (*total)[ROW_UNITS]) {
  int32x4_t acc[TOKEN_UNITS][ROW_UNITS];
  for (int u = 0; u < units; u++)
    for (int r = 0; r < ROW_UNITS; r++)
      acc[u][r] = vdupq_n_s32(0);
  for (int32_t i = 0; i < GROUP_SLICES; i++)
    for (int u = 0; u < units; u++)
      for (int r = 0; r < ROW_UNITS; r++)
        acc[u][r] = vmmlaq_s32(acc[u][r], x[i][u], w[i][r]);
  for (int u = 0; u < units; u++) {
    const float32x4_t steps = vcombine_f32(vld1_dup_f32(step + 2 * u), vld1_dup_f32(step + 2 * u + 1));
    for (int r = 0; r < ROW_UNITS; r++) {
      const float32x2_t two = vld1_f32(scale + 2 * r);
      total[u][r] += vcvtq_f32_s32(acc[u][r]) * (vcombine_f32(two, two) * steps);
    }
  }
}

static inline int8x16_t load(const uint8_t *p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }

// Codes 0..2 of ROWS rows over a step, quarter by quarter: of each row four columns side by side.
static inline void load_step(const uint8_t *w, int32_t row, int32_t step, int8x16_t c[4]) {
  decode(w + (size_t)(row / BM) * PANEL_BYTES + PANEL_SCALES + (step * BM + row % BM) * 4, c);
}

static inline floats load_scales(const uint8_t *w, int32_t row, int32_t g) {
  return widen(w + (size_t)(row / BM) * PANEL_BYTES + (g * BM + row % BM) * 2);
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

// The weights, -1..1, and the scales of MR rows over `columns` columns from k0 on; rows from row_end on repeat
// the last.
static void unpack(const uint8_t *w, int32_t row, int32_t row_end, int32_t k0, int32_t columns,
                   row_units *out, float (*scale)[MR]) {
  for (int v = 0; v < MR / ROWS; v++) {
    const int32_t r = row + v * ROWS < row_end ? row + v * ROWS : row_end - ROWS;
    for (int32_t i = 0; i < columns / STEP; i++) {
      int8x16_t c[4];
      load_step(w, r, k0 / STEP + i, c);
      for (int quarter = 0; quarter < 4; quarter++)
        c[quarter] = vsubq_s8(c[quarter], vdupq_n_s8(1));
      place_units(c, v, out + i * (STEP / SLICE));
    }
    for (int32_t g = 0; g < columns / GROUP; g++) {
      const floats some = load_scales(w, r, k0 / GROUP + g);
      memcpy(&scale[g][v * ROWS], &some, sizeof some);
    }
  }
}

// MR rows, of which `rows` are real, by `units` units of tokens, of which n are real, over `groups` groups of
// columns: within a group sums are exact; then, in float,
//   total = total + sum * (scale * step)
// with the row's scale and the token's step, every operation rounded: in every kernel alike. y goes on from an
// earlier block of columns, or starts.
static inline __attribute__((always_inline)) void micro_kernel(const workspace *s, int32_t block,
                                                               int32_t groups, int units, int32_t n,
                                                               int32_t rows, int is_first, int32_t *y) {
  totals total = {0};
  if (!is_first)
    for (int32_t t = 0; t < n; t++)
      for (int r = 0; r < rows / UNIT; r++)
        memcpy(total_at(total, t, r), y + (size_t)t * M_PAD + r * UNIT, UNIT * sizeof *y);
  for (int32_t g = 0; g < groups; g++)
    add_group(s->codes[block] + g * GROUP_SLICES, s->x + g * GROUP_SLICES, units, s->scale[block][g],
              s->step[g], total);
  for (int32_t t = 0; t < n; t++)
    for (int r = 0; r < rows / UNIT; r++)
      memcpy(y + (size_t)t * M_PAD + r * UNIT, total_at(total, t, r), UNIT * sizeof *y);
}

static void macro_kernel(const uint8_t *operand, int32_t n, int32_t *y, int32_t row, int32_t row_end,
                         int32_t k0, int32_t columns, workspace *s) {
  const int32_t units = (n + UNIT - 1) / UNIT, groups = columns / GROUP;
  arrange(operand + HEADER + k0, n, units, columns / VB, s->x);
  for (int32_t g = 0; g < groups; g++)
    for (int32_t t = 0; t < units * UNIT; t++) // those beyond n repeat the last
      memcpy(&s->step[g][t], operand + (size_t)(t < n ? t : n - 1) * OPERAND_BYTES + (k0 / GROUP + g) * 4,
             sizeof(float));
  for (int32_t i = 0; row < row_end; i++, row += MR) {
    const int32_t rows = row_end - row < MR ? row_end - row : MR;
    switch (units) {
    case 1:
      micro_kernel(s, i, groups, 1, n, rows, k0 == 0, y + row);
      break;
    case 2:
      micro_kernel(s, i, groups, 2, n, rows, k0 == 0, y + row);
      break;
    }
  }
}

// Rows [row0, row_end), at most MC of them, by all tokens.
static void multiply_rows(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t row0,
                          int32_t row_end, workspace *s) {
  const int32_t units = (n + UNIT - 1) / UNIT, parts = (units + TOKEN_UNITS - 1) / TOKEN_UNITS;
  for (int32_t k0 = 0; k0 < K; k0 += KC) {
    const int32_t columns = K - k0 < KC ? K - k0 : KC;
    for (int32_t i = 0, row = row0; row < row_end; i++, row += MR)
      unpack(w, row, row_end, k0, columns, s->codes[i], s->scale[i]);
    for (int32_t p = 0, t = 0, t_end; p < parts; p++, t = t_end) { // as even as possible
      t_end = (int32_t)((int64_t)units * (p + 1) / parts) * UNIT;
      macro_kernel(operand + (size_t)t * OPERAND_BYTES, (t_end < n ? t_end : n) - t, y + (size_t)t * M_PAD,
                   row0, row_end, k0, columns, s);
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

const bg_kernel bg_i2_g_gemm_m31_k128_s64_bm16_bk64_nr4_kc64__i8mm = {
    .symbol = "bg_i2_g_gemm_m31_k128_s64_bm16_bk64_nr4_kc64__i8mm",
    .m = M,
    .k = K,
    .group = GROUP,
    .m_pad = M_PAD,
    .panels = PANELS,
    .max_n = INT32_MAX,
    .weight_bytes = WEIGHT_BYTES,
    .operand_bytes = OPERAND_BYTES,
    .scratch_bytes = sizeof(workspace),
    .pack_activations = pack_activations,
    .run = run,
    .unpack_row = unpack_row,
};
