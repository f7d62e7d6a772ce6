// bg_i2_g_gemm_m127_k128_s64_bm64_bk64_nr4_g8_mixed__avx512vnni
//
// gemm of W [127, 128] in layout i2_g_bm64_bk64 on avx512vnni.
// Generated from templates/i2_g/avx512vnni.c.j2 by:
//   bitgen gen bg_i2_g_gemm_m127_k128_s64_bm64_bk64_nr4_g8_mixed__avx512vnni

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { ROWS = 16, TOGETHER = 4 }; // rows of a vector, vectors that prefill takes together
enum { M = 127, K = 128, M_PAD = 128, K_PAD = 128 };
enum { BM = 64, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 4608, OPERAND_BYTES = 192 };
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
typedef __m512i vector, row_sums;
_Static_assert(VB == sizeof(vector), "a vector is a step of its rows");

// The codes of a quarter, 0..2: of each row four columns side by side.
static inline vector decode(vector v, int quarter) {
  return _mm512_and_si512(_mm512_srli_epi16(v, 6 - 2 * quarter), _mm512_set1_epi8(3));
}

static inline row_sums add_products(row_sums acc, vector c, int32_t four) {
  return _mm512_dpbusd_epi32(acc, c, _mm512_set1_epi32(four));
}

static inline floats widen(const uint8_t *halves) {
  return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves));
}

// One step of MV vectors of rows by `tokens` <= NR tokens: of each row four columns side by side, times
// the same four activations, which are loaded once for all rows.
static inline __attribute__((always_inline)) void add_step(row_sums acc[NR][MV], const uint8_t *w,
                                                           const uint8_t *q, int tokens) {
  vector codes[MV];
  memcpy(codes, w, sizeof codes);
#pragma clang loop unroll(full)
  for (int quarter = 0; quarter < 4; quarter++) {
#pragma clang loop unroll(full)
    for (int t = 0; t < tokens; t++) {
      int32_t four;
      memcpy(&four, q + (size_t)t * OPERAND_BYTES + 4 * quarter, sizeof four);
#pragma clang loop unroll(full)
      for (int v = 0; v < MV; v++)
        acc[t][v] = add_products(acc[t][v], decode(codes[v], quarter), four);
    }
  }
}

static inline ints rows(row_sums acc) { return (ints)acc; }

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
enum { MC = 3584, PANEL_BLOCK = MC / BM };

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

// Whole tiles of LANES tokens are looked up, not multiplied (BiQGEMM, arXiv:2005.09904). A table has an entry
// for each of the 81 ways to weight four activations by -1, 0 or +1: the sums of LANES tokens side by side,
// so that a load and an add do the work of 4 * LANES multiply-adds. One pass takes all rows through the
// tables of LUT_GROUPS times four columns, which stay in the nearest caches; then the next tables are built.
// The passes of a group of columns end with its scales.
enum { LUT_GROUPS = 8, LANES = 32, ENTRIES = 81 };
enum { PASS = 4 * LUT_GROUPS, PASSES = K / PASS, GROUP_PASSES = GROUP / PASS, PASS_STEPS = PASS / STEP };
enum { LUT_MC = 128 };
_Static_assert(LUT_MC <= M_PAD && LUT_MC % BM == 0, "whole panels");
_Static_assert(LUT_GROUPS == 8 && PASS_STEPS == 2 && LANES % STEP == 0 && GROUP % PASS == 0,
               "a pass is two steps, of which a row has a word of entries; a group is whole passes");

// Look-ups are bound by loads; products with sums in registers need few. So half of the rows are multiplied
// while the others are looked up: WIDE rows by FEW tokens at a time, over a group of columns. A pass has CALLS
// such turns, and the passes of a group multiply all tokens.
enum { WIDE = 64, FEW = 4, CALLS = LANES / FEW / GROUP_PASSES };
enum { MOST_LOOKED_UP = LUT_MC / 2 + WIDE };
_Static_assert(CALLS *GROUP_PASSES *FEW == LANES && CALLS * GROUP / 4 == WIDE,
               "a turn looks up a row for every four columns");

// How many of `all` rows are multiplied: the first ones.
static inline int32_t multiplied(int32_t all) { return all / 2 / WIDE * WIDE; }

enum { ROOM = (MOST_LOOKED_UP + STEP - 1) / STEP * STEP };

// The int16 sums of a group cannot overflow.
enum { FLUSH = GROUP_PASSES };
_Static_assert(128 * FLUSH * PASS <= INT16_MAX, "int16 sums over FLUSH passes are exact");

typedef int16_t lanes __attribute__((vector_size(2 * LANES)));
typedef int32_t wide_lanes __attribute__((vector_size(4 * LANES), aligned(64)));
typedef float float_lanes __attribute__((vector_size(4 * LANES), aligned(64)));
typedef int8_t bytes __attribute__((vector_size(STEP)));
typedef int16_t wide_bytes __attribute__((vector_size(2 * STEP)));
typedef int32_t sums __attribute__((vector_size(4 * STEP)));
typedef uint8_t columns __attribute__((vector_size(VB)));
typedef uint32_t words __attribute__((vector_size(VB)));
typedef uint64_t long_words __attribute__((vector_size(2 * VB)));

typedef struct {
  const uint8_t *operand; // [n][OPERAND_BYTES]
  int32_t n;
  int32_t rows;
  int32_t *y; // [n][M_PAD]
} tile;

typedef struct {
  lanes table[LUT_GROUPS][ENTRIES];
  lanes x[LUT_GROUPS][4];
  lanes part[ROOM]; // sums of a group so far
  float_lanes total[ROOM];
  float_lanes step; // of a group's activations, of each token
  float scale[GROUPS][ROOM];
  // Of each group of four columns of a row, its place in the table.
  uint8_t entry[PASSES][ROOM][LUT_GROUPS];
  const uint8_t *w; // the panels whose first rows are multiplied
} workspace;

// The codes of ROWS rows over a step: of each row four bytes, of four columns each.
static inline columns load_step(const uint8_t *w, int32_t row, int32_t step) {
  columns c;
  memcpy(&c, w + (size_t)(row / BM) * PANEL_BYTES + PANEL_SCALES + (step * BM + row % BM) * 4, sizeof c);
  return c;
}

static inline floats load_scales(const uint8_t *w, int32_t row, int32_t g) {
  return widen(w + (size_t)(row / BM) * PANEL_BYTES + (g * BM + row % BM) * 2);
}

// The codes of WIDE rows over a group lie step by step as they are packed.
static inline const uint8_t *multiplied_codes(const workspace *s, int32_t row, int32_t g) {
  _Static_assert(WIDE == BM, "rows that are multiplied are a panel");
  return s->w + (size_t)(row / BM) * PANEL_BYTES + PANEL_SCALES + g * (GROUP / 4 * BM);
}

// The elements of 16 vectors shuffled like a deck of cards, its halves riffled. After 4 rounds
// neighbours are the elements that stood in the same lane.
static inline void riffle_bytes(bytes v[16]) {
  bytes u[8][2];
  for (int i = 0; i < 8; i++) {
    const bytes a = v[i], b = v[8 + i];
    u[i][0] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    u[i][1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
  memcpy(v, u, sizeof u);
}

// The elements of 16 vectors shuffled like a deck of cards, its halves riffled. After 4 rounds
// neighbours are the elements that stood in the same lane.
static inline void riffle_sums(sums v[16]) {
  sums u[8][2];
  for (int i = 0; i < 8; i++) {
    const sums a = v[i], b = v[8 + i];
    u[i][0] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    u[i][1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
  memcpy(v, u, sizeof u);
}

// The entries of four columns each: a byte c0 c1 c2 c3 of base-4 digits becomes the base-3 number of the same
// digits. What has a digit 3 is no code, and becomes the last entry.
static inline columns entries_of(columns c) {
  const columns entry = c - (c >> 2) - 3 * (c >> 4) - 9 * (c >> 6), inside = (columns)(entry < ENTRIES);
  return (entry & inside) | ((ENTRIES - 1) & ~inside);
}

// The entries of BM rows from `row` on, of which those of a pass become contiguous, and their scales.
static void place_panel(const uint8_t *w, int32_t row, int32_t at, workspace *s) {
  for (int32_t g = 0; g < GROUPS; g++)
    for (int32_t r = 0; r < BM; r += ROWS) {
      const floats scale = load_scales(w, row + r, g);
      memcpy(&s->scale[g][at + r], &scale, sizeof scale);
    }
  for (int32_t pass = 0; pass < PASSES; pass++)
    for (int32_t r = 0; r < BM; r += ROWS) {
      const columns first = entries_of(load_step(w, row + r, PASS_STEPS * pass)),
                    second = entries_of(load_step(w, row + r, PASS_STEPS * pass + 1));
      const long_words both = __builtin_convertvector((words)first, long_words) |
                              __builtin_convertvector((words)second, long_words) << 32;
      memcpy(s->entry[pass][at + r], &both, sizeof both);
    }
}

static void place(const uint8_t *w, int32_t rows, workspace *s) {
  const int32_t skip = multiplied(rows);
  s->w = w;
  for (int32_t row = skip; row < rows; row += BM)
    place_panel(w, row, row - skip, s);
}

// The activations of a pass, STEP tokens and columns at a time; lanes beyond n repeat the last token and are
// not stored in the end.
static void load_activations(const uint8_t *q, int32_t n, workspace *s) {
  for (int square = 0; square < PASS_STEPS * LANES / STEP; square++) {
    const int step = square % PASS_STEPS, t0 = square / PASS_STEPS * STEP;
    bytes v[STEP];
    for (int t = 0; t < STEP; t++)
      memcpy(&v[t], q + (size_t)(t0 + t < n ? t0 + t : n - 1) * OPERAND_BYTES + step * STEP, STEP);
    for (int round = 0; round < 4; round++)
      riffle_bytes(v);
    for (int j = 0; j < STEP; j++) { // byte j % 4 of a step has columns j % 4, j % 4 + 4, ...
      const wide_bytes x = __builtin_convertvector(v[j], wide_bytes);
      memcpy((int16_t *)&s->x[4 * step + j % 4][j / 4] + t0, &x, sizeof x);
    }
  }
}

// The steps of a group's activations, of each token.
static void load_steps(const tile *t, int32_t g, workspace *s) {
  for (int i = 0; i < LANES; i++)
    memcpy((float *)&s->step + i, t->operand + (size_t)(i < t->n ? i : t->n - 1) * OPERAND_BYTES + g * 4,
           sizeof(float));
}

// Entry 27 c0 + 9 c1 + 3 c2 + c3 is the sum of (c - 1) x over the four.
static void build_tables(lanes (*x)[4], workspace *s) {
  for (int g = 0; g < LUT_GROUPS; g++) {
    lanes high[9], low[9];
    for (int i = 0; i < 9; i++) {
      const int16_t c = (int16_t)(i / 3 - 1), d = (int16_t)(i % 3 - 1);
      high[i] = c * x[g][0] + d * x[g][1];
      low[i] = c * x[g][2] + d * x[g][3];
    }
    for (int h = 0; h < 9; h++)
      for (int l = 0; l < 9; l++)
        s->table[g][9 * h + l] = high[h] + low[l];
  }
}

// One row in one pass: a word holds the places of its entries. The first pass of FLUSH starts int16 sums, the
// last ends them: when those of a group are whole, in float,
//   total = total + sum * (scale * step)
// with the row's scale and the token's step, every operation rounded: as in products. Compilers that mix the
// loads of several rows, or keep eight addresses, run out of registers.
static inline __attribute__((always_inline)) void lut_micro_kernel(int32_t pass, int32_t r, int starts,
                                                                   int ends, workspace *s) {
  lanes sum = starts ? (lanes){0} : s->part[r];
  const lanes(*table)[ENTRIES] = s->table;
  __asm__ volatile("" : "+r"(table)::"memory"); // in order, from one address
  uint64_t entries;
  memcpy(&entries, s->entry[pass][r], sizeof entries);
  for (int g = 0; g < LUT_GROUPS; g++)
    sum += table[g][(uint8_t)(entries >> 8 * g)];
  if (!ends) {
    s->part[r] = sum;
    return;
  }
  const float_lanes factor = s->scale[pass / GROUP_PASSES][r] * s->step;
  s->total[r] += __builtin_convertvector(sum, float_lanes) * factor;
}

// The turn of FEW tokens from `token` on: WIDE rows are multiplied by them over a group of columns, and of the
// other rows one is looked up for every four columns. Four loads of activations serve sixteen products.
static inline __attribute__((always_inline)) void mixed_micro_kernel(const tile *t, int32_t pass, int starts,
                                                                     int ends, int32_t token, int32_t row,
                                                                     int32_t looked_up, workspace *s) {
  enum { MIXED = WIDE / ROWS };
  const int32_t g = pass / GROUP_PASSES;
  const uint8_t *w = multiplied_codes(s, row, g), *x[FEW];
  row_sums acc[FEW][MIXED];
  for (int i = 0; i < FEW; i++) { // tokens beyond the last repeat it
    int32_t sum;
    x[i] = t->operand + (size_t)(token + i < t->n ? token + i : t->n - 1) * OPERAND_BYTES;
    memcpy(&sum, x[i] + (GROUPS + g) * 4, sizeof sum);
    for (int v = 0; v < MIXED; v++)
      acc[i][v] = (row_sums)((ints){0} - sum);
  }
  for (int32_t column = 0; column < GROUP; column += STEP, w += WIDE * STEP / 4) {
    vector codes[MIXED];
    memcpy(codes, w, sizeof codes);
#pragma clang loop unroll(full)
    for (int quarter = 0; quarter < 4; quarter++) {
      lut_micro_kernel(pass, looked_up + column / 4 + quarter, starts, ends, s);
      for (int i = 0; i < FEW; i++) {
        int32_t four;
        memcpy(&four, x[i] + HEADER + g * GROUP + column + 4 * quarter, sizeof four);
        for (int v = 0; v < MIXED; v++)
          acc[i][v] = add_products(acc[i][v], decode(codes[v], quarter), four);
      }
    }
  }
  int32_t *y[FEW];
  float step[FEW];
  for (int i = 0; i < FEW; i++) {
    memcpy(&step[i], x[i] + g * 4, sizeof step[i]);
    y[i] = t->y + (size_t)(token + i < t->n ? token + i : t->n - 1) * M_PAD + row;
  }
#pragma clang loop unroll(full)
  for (int v = 0; v < MIXED; v++) {
    const floats scale = load_scales(s->w, row + v * ROWS, g);
    floats total[FEW];
    for (int i = 0; i < FEW; i++)
      memcpy(&total[i], y[i] + v * ROWS, sizeof total[i]);
    for (int i = 0; i < FEW; i++) {
      total[i] += __builtin_convertvector(rows(acc[i][v]), floats) * (scale * step[i]);
      memcpy(y[i] + v * ROWS, &total[i], sizeof total[i]);
    }
  }
}

// One pass over the rows. The passes of a group multiply all tokens by it.
static inline __attribute__((always_inline)) void lut_pass(const tile *t, int32_t pass, int starts, int ends,
                                                           workspace *s) {
  enum { TURN = WIDE / CALLS }; // rows that are looked up
  const int32_t both = multiplied(t->rows);
  for (int32_t r = 0; r < both; r += TURN) {
    const int32_t token = (pass % GROUP_PASSES * CALLS + r / TURN % CALLS) * FEW;
    if (token < t->n)
      mixed_micro_kernel(t, pass, starts, ends, token, r / WIDE * WIDE, r, s);
    else
      for (int32_t i = 0; i < TURN; i++)
        lut_micro_kernel(pass, r + i, starts, ends, s);
  }
  for (int32_t r = both; r < t->rows - both; r++)
    lut_micro_kernel(pass, r, starts, ends, s);
}

static void start_products(const tile *t) {
  for (int32_t token = 0; token < t->n; token++)
    memset(t->y + (size_t)token * M_PAD, 0, (size_t)multiplied(t->rows) * sizeof *t->y);
}

// The sums of STEP rows and STEP tokens, of which some may be beyond the last, go to y [token][M_PAD].
static inline void store_square(const wide_lanes *total, int32_t token, int32_t rows, int32_t tokens,
                                int32_t *y) {
  sums v[STEP];
  for (int r = 0; r < STEP; r++)
    memcpy(&v[r], (const int32_t *)&total[r] + token, sizeof v[r]);
  for (int round = 0; round < 4; round++)
    riffle_sums(v);
  for (int32_t t = 0; t < tokens && t < STEP; t++, y += M_PAD)
    memcpy(y, &v[t], rows < STEP ? (size_t)rows * sizeof *y : sizeof v[t]);
}

static void lut_macro_kernel(const tile *t, workspace *s) {
  const int32_t skip = multiplied(t->rows), rows = t->rows - skip;
  start_products(t);
  memset(s->total, 0, (size_t)rows * sizeof *s->total);
  for (int32_t pass = 0; pass < PASSES; pass++) {
    const int32_t i = pass % GROUP_PASSES;
    if (i == 0)
      load_steps(t, pass / GROUP_PASSES, s);
    load_activations(t->operand + HEADER + pass * PASS, t->n, s);
    build_tables(s->x, s);
    const int starts = i % FLUSH == 0, ends = i % FLUSH == FLUSH - 1 || i == GROUP_PASSES - 1;
    if (starts && ends)
      lut_pass(t, pass, 1, 1, s);
    else if (starts)
      lut_pass(t, pass, 1, 0, s);
    else if (ends)
      lut_pass(t, pass, 0, 1, s);
    else
      lut_pass(t, pass, 0, 0, s);
  }
  const wide_lanes *total = (const wide_lanes *)s->total; // y takes the bits of floats
  for (int32_t r = 0; r < rows; r += STEP)
    for (int32_t token = 0; token < t->n; token += STEP)
      store_square(total + r, token, rows - r, t->n - token, t->y + (size_t)token * M_PAD + skip + r);
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  // Up to LANES / 2 tokens beyond whole tiles are multiplied, which takes less time than one more tile.
  const int32_t in_tiles = n % LANES > LANES / 2 ? n : n - n % LANES;
  const int32_t parts = in_tiles ? ((p1 - p0) * BM + LUT_MC - 1) / LUT_MC : 0;
  for (int32_t i = 0; i < parts; i++) {
    const int32_t p = p0 + (p1 - p0) * i / parts, rows = (p0 + (p1 - p0) * (i + 1) / parts - p) * BM;
    place(w + (size_t)p * PANEL_BYTES, rows, scratch);
    for (int32_t t = 0; t < in_tiles; t += LANES) {
      const int32_t tokens = in_tiles - t < LANES ? in_tiles - t : LANES;
      const tile one = {operand + (size_t)t * OPERAND_BYTES, tokens, rows, y + (size_t)t * M_PAD + p * BM};
      lut_macro_kernel(&one, scratch);
    }
  }
  if (in_tiles < n)
    products(w, operand + (size_t)in_tiles * OPERAND_BYTES, n - in_tiles, y + (size_t)in_tiles * M_PAD, p0,
             p1);
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

const bg_kernel bg_i2_g_gemm_m127_k128_s64_bm64_bk64_nr4_g8_mixed__avx512vnni = {
    .symbol = "bg_i2_g_gemm_m127_k128_s64_bm64_bk64_nr4_g8_mixed__avx512vnni",
    .m = M,
    .k = K,
    .group = GROUP,
    .m_pad = M_PAD,
    .panels = PANELS,
    .max_n = INT32_MAX,
    .weight_bytes = WEIGHT_BYTES,
    .operand_bytes = OPERAND_BYTES,
    .m_tile = 1280,
    .n_tile = LANES,
    .scratch_bytes = sizeof(workspace),
    .pack_activations = pack_activations,
    .run = run,
    .unpack_row = unpack_row,
};
