// bg_i1_g_gemm_m127_k128_s64_b1_bm64_bk64_nr4__avx2
//
// gemm of W [127, 128] in layout i1_g_bm64_bk64 on avx2.
// Generated from templates/i1_g/avx2.c.j2 by:
//   bitgen gen bg_i1_g_gemm_m127_k128_s64_b1_bm64_bk64_nr4__avx2

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { ROWS = 32, TOGETHER = 1 }; // rows of a vector, vectors that prefill takes together
enum { M = 127, K = 128, M_PAD = 128, K_PAD = 128 };
enum { BM = 64, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 2560, OPERAND_BYTES = 1088 };
enum { NR = 4, KC = 128 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

// A byte is eight columns of a row, of which each four index a table of 16 sums. A step is four bytes of each
// row: eight tables.
enum { STEP = 32, VB = ROWS, VECTORS = BM / ROWS, STEP_BYTES = BM * STEP / 8 };
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

enum { GROUP = BK, GROUPS = K / GROUP };
enum { PANEL_SCALES = GROUPS * BM * 2, PANEL_BYTES = PANEL_SCALES + BM * K / 8 };
_Static_assert(K == K_PAD, "whole groups");
enum { MV = TOGETHER };
_Static_assert(VECTORS % MV == 0, "a panel is whole passes");

typedef float floats __attribute__((vector_size(4 * ROWS)));

// One token's operand: float steps [GROUPS] of the activations, int32 sums [GROUPS] of |q|, then the tables.
enum { HEADER = (GROUPS * 8 + 63) / 64 * 64 };
_Static_assert(HEADER + K * COLUMN_BYTES <= OPERAND_BYTES, "the operand holds all of it");

static void pack_activations(const int8_t *q, int32_t n, uint8_t *operand) {
  const int32_t floats = GROUPS * (int32_t)sizeof(float);
  for (int32_t t = 0; t < n; t++, q += K + floats, operand += OPERAND_BYTES) {
    int32_t sums[GROUPS];
    for (int32_t g = 0; g < GROUPS; g++)
      sums[g] = magnitude(q + g * GROUP, GROUP);
    memset(operand, 0, HEADER);
    memcpy(operand, q + K, floats);
    memcpy(operand + floats, sums, sizeof sums);
    build_tables(q, K, operand + HEADER);
  }
}

static inline vector look_up(const uint8_t *entries, vector index) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)entries));
  return (vector)_mm256_shuffle_epi8(table, (__m256i)index);
}

// uint16: of each half of 16 rows the first and the last eight.
typedef struct {
  __m256i first, last;
} row_sums;

static inline row_sums add_bytes(row_sums acc, vector low, vector high) {
  const __m256i l = (__m256i)low, h = (__m256i)high, factors = _mm256_set1_epi16(1 | 32 << 8);
  const __m256i first = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(l, h), factors),
                last = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(l, h), factors);
  return (row_sums){_mm256_add_epi16(acc.first, first), _mm256_add_epi16(acc.last, last)};
}

static inline ints rows(row_sums acc) {
  const __m256i v[2] = {_mm256_permute2x128_si256(acc.first, acc.last, 0x20),
                        _mm256_permute2x128_si256(acc.first, acc.last, 0x31)};
  uint16_t in_order __attribute__((vector_size(2 * ROWS)));
  memcpy(&in_order, v, sizeof v);
  return 2 * __builtin_convertvector(in_order, ints);
}

static inline floats widen(const uint8_t *halves) {
  __m256 v[ROWS / 8];
#pragma clang loop unroll(full)
  for (int i = 0; i < ROWS / 8; i++)
    v[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves + i));
  floats all;
  memcpy(&all, v, sizeof all);
  return all;
}

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
enum { MC = 6528, PANEL_BLOCK = MC / BM };

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

// A row as floats, scale times sign: exactly.
static void unpack_row(const uint8_t *w, int32_t row, float *out) {
  typedef int32_t signs __attribute__((vector_size(32)));
  typedef float values __attribute__((vector_size(32)));
  const signs bit = {0, 1, 2, 3, 4, 5, 6, 7};
  const int32_t r = row % BM;
  const uint8_t *scales = w + (size_t)(row / BM) * PANEL_BYTES, *at = scales + PANEL_SCALES + r;
  for (int32_t g = 0; g < GROUPS; g++) {
    const floats of_rows = widen(scales + (g * BM + r / ROWS * ROWS) * 2);
    const float scale = of_rows[r % ROWS];
    for (int32_t i = 0; i < GROUP; i += 8, at += BM, out += 8) {
      const signs plus = ((signs){0} + *at) >> bit & 1;
      const values v = __builtin_convertvector(2 * plus - 1, values) * scale;
      memcpy(out, &v, sizeof v);
    }
  }
}

const bg_kernel bg_i1_g_gemm_m127_k128_s64_b1_bm64_bk64_nr4__avx2 = {
    .symbol = "bg_i1_g_gemm_m127_k128_s64_b1_bm64_bk64_nr4__avx2",
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
