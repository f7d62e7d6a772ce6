// bg_t5_g_gemm_m159_k128_s64_bm80_bk64_nr2__avx2
//
// gemm of W [159, 128] in layout t5_g_bm80_bk64 on avx2.
// Generated from templates/t5_g/avx2.c.j2 by:
//   bitgen gen bg_t5_g_gemm_m159_k128_s64_bm80_bk64_nr2__avx2

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { ROWS = 8, TOGETHER = 1 }; // rows of a vector, vectors that prefill takes together
enum { M = 159, K = 128, M_PAD = 160, K_PAD = 128 };
enum { BM = 80, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 4736, OPERAND_BYTES = 192 };
enum { NR = 2, KC = 128 };
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
typedef __m256i vector, row_sums;
_Static_assert(VB == sizeof(vector), "a vector is a step of its rows");

// Sums are int16. A lane gains 8 products of a code 0..2 and an activation -128..127 from each step.
enum { SPAN = 256 };
_Static_assert(GROUP <= SPAN && SPAN / STEP * 8 * (2 * 128) <= 32768, "int16 sums over a group are exact");

// Codes 0..2 of the four quarters of a step: of each row four columns side by side.
static inline void decode(const uint8_t *w, vector c[4]) {
  const __m256i v = _mm256_loadu_si256((const __m256i *)w), low2 = _mm256_set1_epi8(3);
  c[0] = _mm256_and_si256(_mm256_srli_epi16(v, 6), low2);
  c[1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low2);
  c[2] = _mm256_and_si256(_mm256_srli_epi16(v, 2), low2);
  c[3] = _mm256_and_si256(v, low2);
}

// Four codes of each of the rows times the same four activations.
static inline __m256i multiply(__m256i c, const uint8_t *q) {
  int32_t four;
  memcpy(&four, q, sizeof four);
  return _mm256_maddubs_epi16(c, _mm256_set1_epi32(four));
}

static inline row_sums add_products(row_sums acc, const vector c[4], const uint8_t *q) {
  const __m256i first = _mm256_add_epi16(multiply(c[0], q), multiply(c[1], q + 4)),
                last = _mm256_add_epi16(multiply(c[2], q + 8), multiply(c[3], q + 12));
  return _mm256_add_epi16(acc, _mm256_add_epi16(first, last));
}

static inline ints rows(row_sums acc) { return (ints)_mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }

static inline floats widen(const uint8_t *halves) {
  return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
}

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
    }
  }
}

// The weights of MC rows stay in the second-level cache while all tokens pass over them.
enum { MC = 3600, PANEL_BLOCK = MC / BM };

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

// Panels of fives become panels of i2_g once for all tokens, whose products then go on as there. A byte holds
// one column of five rows, which stand APART rows apart; a group is its scales, then its bytes.
enum { FIVE = 5, APART = BM / FIVE, SCALES = BM * 2, GROUP_BYTES = SCALES + APART * GROUP };
_Static_assert(APART % ROWS == 0, "whole vectors of fives");

typedef uint8_t columns __attribute__((vector_size(VB)));

typedef struct {
  uint8_t panels[PANEL_BLOCK][PANEL_BYTES];
} workspace;

static inline columns least(columns a, columns b) {
  const columns first = (columns)(a < b); // 255 where true
  return (a & first) | (b & ~first);
}

// How often a byte below 3 place holds place.
static inline columns digit(columns v, uint8_t place) {
  return -((columns)(v >= place) + (columns)(v >= (uint8_t)(2 * place)));
}

// Of ROWS times five rows over a step: four codes of each, four columns apart, become a base-4 number. Of the
// two rows of a pair, and of the three of a rest, the last follows from the numbers of both and of the others:
// bytes wrap around.
static inline void codes_of(const uint8_t *w, columns c[FIVE]) {
  memset(c, 0, FIVE * sizeof *c);
  for (int quarter = 0; quarter < 4; quarter++) {
    columns v;
    memcpy(&v, w + quarter * APART * 4, sizeof v);
    const columns rest = least(v >> 3, v - 216), pair = 8 - least(v - (rest << 3), (columns){0} + 8);
    const columns third = digit(rest, 9);
    c[0] = 4 * c[0] + digit(pair, 3);
    c[1] = 4 * c[1] + pair;
    c[2] = 4 * c[2] + third;
    c[3] = 4 * c[3] + digit(rest - 9 * third, 3);
    c[4] = 4 * c[4] + rest;
  }
  c[1] -= 3 * c[0];
  c[4] -= 9 * c[2] + 3 * c[3];
}

static void repack(const uint8_t *w, uint8_t *panel) {
  uint8_t *codes = panel + PANEL_SCALES;
  for (int32_t g = 0; g < GROUPS; g++, w += GROUP_BYTES) {
    memcpy(panel + g * SCALES, w, SCALES);
    for (int32_t i = 0; i < GROUP; i += STEP, codes += BM * 4)
      for (int32_t r = 0; r < APART; r += ROWS) {
        columns c[FIVE];
        codes_of(w + SCALES + i * APART + r * 4, c);
        for (int j = 0; j < FIVE; j++)
          memcpy(codes + (j * APART + r) * 4, &c[j], sizeof c[j]);
      }
  }
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  workspace *s = scratch;
  for (int32_t p = p0, p_end; p < p1; p = p_end) {
    p_end = p1 - p < PANEL_BLOCK ? p1 : p + PANEL_BLOCK;
    for (int32_t i = p; i < p_end; i++)
      repack(w + (size_t)i * (GROUPS * GROUP_BYTES), s->panels[i - p]);
    products(s->panels[0], operand, n, y + p * BM, 0, p_end - p);
  }
}

// A row as floats, scale times code: exactly, as a code is -1, 0 or 1. It is one of the five rows of a byte, of
// which a pair and a rest hold two and three: a code is what is left by 3 of such a number over its place.
static void unpack_row(const uint8_t *w, int32_t row, float *out) {
  typedef uint8_t bytes __attribute__((vector_size(4)));
  typedef int32_t codes __attribute__((vector_size(16)));
  typedef float values __attribute__((vector_size(16)));
  static const int32_t over[FIVE] = {171, 512, 57, 171, 512}; // 512ths of 1/3, 1, 1/9, 1/3, 1
  const int32_t r = row % BM, nth = r / APART;
  const uint8_t *group = w + (size_t)(row / BM) * (GROUPS * GROUP_BYTES);
  for (int32_t g = 0; g < GROUPS; g++, group += GROUP_BYTES) {
    const float scale = widen(group + r / ROWS * ROWS * 2)[r % ROWS];
    const uint8_t *at = group + SCALES + r % APART * 4;
    for (int32_t i = 0; i < GROUP; i += 4, at += APART * 4, out += 4) {
      bytes packed;
      memcpy(&packed, at, sizeof packed);
      const codes v = __builtin_convertvector(packed, codes), has_pair = v < 216;
      const codes pair = (8 - (v & 7)) & has_pair, rest = (v >> 3 & has_pair) | ((v - 216) & ~has_pair);
      const codes number = (nth < 2 ? pair : rest) * over[nth] >> 9;
      const values code = __builtin_convertvector(number - 3 * (number * 171 >> 9) - 1, values) * scale;
      memcpy(out, &code, sizeof code);
    }
  }
}

const bg_kernel bg_t5_g_gemm_m159_k128_s64_bm80_bk64_nr2__avx2 = {
    .symbol = "bg_t5_g_gemm_m159_k128_s64_bm80_bk64_nr2__avx2",
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
