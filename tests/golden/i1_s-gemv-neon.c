// bg_i1_s_gemv_m127_k256_b1_bm64_bk128_pf2048__neon
//
// gemv of W [127, 256] in layout i1_s_bm64_bk128 on neon.
// Generated from templates/i1_s/neon.c.j2 by:
//   bitgen gen bg_i1_s_gemv_m127_k256_b1_bm64_bk128_pf2048__neon

#include <arm_neon.h>
#include <string.h>

#include "kernel.h"

enum { ROWS = 16, TOGETHER = 1 }; // rows of a vector, vectors that prefill takes together
enum { M = 127, K = 256, M_PAD = 128, K_PAD = 256 };
enum { BM = 64, BK = 128, PANELS = 2 };
enum { WEIGHT_BYTES = 4096, OPERAND_BYTES = 2112 };
enum { PREFETCH = 2048 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

// A byte is eight columns of a row, of which each four index a table of 16 sums. A step is four bytes of each
// row: eight tables.
enum { STEP = 32, VB = ROWS, VECTORS = BM / ROWS, STEP_BYTES = BM * STEP / 8 };
// Weights are prefetched into the second-level cache: tables fill the first.
enum { LOCALITY = 2 };
enum { TABLE_BYTES = 32, COLUMN_BYTES = TABLE_BYTES / 4 };
_Static_assert(BM % ROWS == 0 && BK % STEP == 0 && K_PAD % BK == 0, "whole vectors of rows, whole steps");

// A lane is a row.
typedef uint8_t vector __attribute__((vector_size(ROWS)));
typedef int32_t ints __attribute__((vector_size(4 * ROWS)));

typedef int16_t entries __attribute__((vector_size(32)));
typedef uint8_t bytes __attribute__((vector_size(16)));

// Tables of four activations: entry i is the sum of |q| where bit j of i, the sign of weight j, agrees with
// the sign of q[j]. So
//   sum w q = 2 * (sum of entries) - sum |q|
// An entry is 0..512: 16 bytes are the low five bits of all, 16 bytes the rest.
static void build_tables(const int8_t *q, int32_t columns, uint8_t *tables) {
  const entries i = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int32_t k = 0; k < columns; k += 4, tables += TABLE_BYTES) {
    entries sum = {0};
    for (int j = 0; j < 4; j++) {
      const int16_t a = q[k + j];
      sum += (-(i >> j & 1) & a) + (int16_t)(a < 0 ? -a : 0);
    }
    const bytes low = __builtin_convertvector(sum & 31, bytes);
    const bytes high = __builtin_convertvector(sum >> 5, bytes);
    memcpy(tables, &low, sizeof low);
    memcpy(tables + sizeof low, &high, sizeof high);
  }
}

static int32_t magnitude(const int8_t *q, int32_t columns) {
  int32_t sum = 0;
  for (int32_t k = 0; k < columns; k++)
    sum += q[k] < 0 ? -q[k] : q[k];
  return sum;
}

enum { BLOCKS = K_PAD / BK, PANEL_SCALES = 0, PANEL_BYTES = BM * K_PAD / 8 };
enum { MV = VECTORS, NR = 1 };
_Static_assert(VECTORS % MV == 0, "a panel is whole passes");

// One token's operand: int32 sum |q| alone on a cache line, then the tables of q padded with zeros to K_PAD.
enum { HEADER = 64 };
_Static_assert(HEADER + K_PAD * COLUMN_BYTES <= OPERAND_BYTES, "the operand holds all of it");

static void pack_activations(const int8_t *q, int32_t n, uint8_t *operand) {
  int8_t row[K_PAD] = {0};
  for (int32_t t = 0; t < n; t++, q += K, operand += OPERAND_BYTES) {
    memcpy(row, q, K);
    const int32_t sum = magnitude(row, K);
    memset(operand, 0, HEADER);
    memcpy(operand, &sum, sizeof sum);
    build_tables(row, K_PAD, operand + HEADER);
  }
}

static inline int32_t operand_sum(const uint8_t *operand) {
  int32_t sum;
  memcpy(&sum, operand, sizeof sum);
  return sum;
}

static inline vector look_up(const uint8_t *entries, vector index) {
  return (vector)vqtbl1q_u8(vld1q_u8(entries), (uint8x16_t)index);
}

typedef uint16_t row_sums __attribute__((vector_size(2 * ROWS)));

static inline row_sums add_bytes(row_sums acc, vector low, vector high) {
  return acc + __builtin_convertvector(low, row_sums) + (__builtin_convertvector(high, row_sums) << 5);
}

static inline ints rows(row_sums acc) { return 2 * __builtin_convertvector(acc, ints); }

// Sums are uint16. A column adds at most 128 to a lane.
enum { SPAN = 480 };
_Static_assert(BK <= SPAN && SPAN * 128 < 1 << 16, "uint16 sums over BK columns are exact");

// Eight tables, looked up with four columns of each of the rows. Sums of their low parts, at most 8 * 31, and
// of their high parts, at most 8 * 16, fit a byte.
static inline __attribute__((always_inline)) row_sums add_entries(row_sums acc, const vector index[8],
                                                                  const uint8_t *table) {
  vector low = {0}, high = {0};
#pragma clang loop unroll(full)
  for (int i = 0; i < 8; i++, table += TABLE_BYTES) {
    low += look_up(table, index[i]);
    high += look_up(table + TABLE_BYTES / 2, index[i]);
  }
  return add_bytes(acc, low, high);
}

// One step of MV vectors of rows by `tokens` <= NR tokens.
static inline __attribute__((always_inline)) void add_step(row_sums acc[NR][MV], const uint8_t *w,
                                                           const uint8_t *q, int tokens) {
#pragma clang loop unroll(full)
  for (int v = 0; v < MV; v++) {
    vector index[8];
#pragma clang loop unroll(full)
    for (int i = 0; i < 8; i += 2) {
      vector both;
      memcpy(&both, w + i / 2 * BM + v * ROWS, sizeof both);
      index[i] = both & 15;
      index[i + 1] = both >> 4;
    }
#pragma clang loop unroll(full)
    for (int t = 0; t < tokens; t++)
      acc[t][v] = add_entries(acc[t][v], index, q + (size_t)t * OPERAND_BYTES);
  }
}

// MV vectors of a panel's rows by `tokens` <= NR tokens.
static inline __attribute__((always_inline)) void micro_kernel(const uint8_t *scales, const uint8_t *w,
                                                               const uint8_t *x, int tokens, int32_t *y) {
  (void)scales;
  ints total[NR][MV] = {0};
  for (int32_t b = 0; b < BLOCKS; b++) {
    row_sums acc[NR][MV] = {0};
    for (int32_t i = b * BK; i < (b + 1) * BK; i += STEP, w += STEP_BYTES) {
      for (int line = 0; line < STEP_BYTES; line += 64)
        __builtin_prefetch(w + PREFETCH + line, 0, LOCALITY);
      add_step(acc, w, x + HEADER + (size_t)i * COLUMN_BYTES, tokens);
    }
    for (int t = 0; t < tokens; t++)
      for (int v = 0; v < MV; v++)
        total[t][v] += rows(acc[t][v]);
  }
  for (int t = 0; t < tokens; t++) {
    for (int v = 0; v < MV; v++)
      total[t][v] -= operand_sum(x + (size_t)t * OPERAND_BYTES);
    memcpy(y + (size_t)t * M_PAD, total[t], sizeof total[t]);
  }
}

// All rows of a panel share the loads of the activations.
static void products(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0,
                     int32_t p1) {
  (void)n;
  w += (size_t)p0 * PANEL_BYTES;
  for (int32_t p = p0; p < p1; p++, w += PANEL_BYTES)
    micro_kernel(w, w + PANEL_SCALES, operand, 1, y + p * BM);
}

// A bit is 1 or -1: rows that pad the last panel have sums, which are no part of the matrix.
static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)scratch;
  products(w, operand, n, y, p0, p1);
  for (int32_t t = 0; p1 == PANELS && t < n; t++)
    memset(y + (size_t)t * M_PAD + M, 0, (M_PAD - M) * sizeof *y);
}

const bg_kernel bg_i1_s_gemv_m127_k256_b1_bm64_bk128_pf2048__neon = {
    .symbol = "bg_i1_s_gemv_m127_k256_b1_bm64_bk128_pf2048__neon",
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
