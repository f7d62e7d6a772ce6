// bg_t5_gemm_m127_k512_bm5_bk256_nr2_g8_mixed__avx512vbmi
//
// gemm of W [127, 512] in layout t5_bm5_bk256 on avx512vbmi.
// Generated from templates/t5/avx512vbmi.c.j2 by:
//   bitgen gen bg_t5_gemm_m127_k512_bm5_bk256_nr2_g8_mixed__avx512vbmi

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { M = 127, K = 512, M_PAD = 130, K_PAD = 512 };
enum { BM = 5, BK = 256, PANELS = 26 };
enum { WEIGHT_BYTES = 13312, OPERAND_BYTES = 576 };
enum { NR = 2, KC = 512 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

enum { VB = 64 };
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

static inline __m512i load(const void *p) { return _mm512_loadu_si512(p); }

// By bytes below 16.
static inline __m512i by_table(__m128i table, __m512i v) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), v);
}

// A third of the bytes 0..8.
static inline __m512i third(__m512i v) {
  return by_table(_mm_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0), v);
}

// A table has an entry for each value of the lower six bits: PAIR and FIRST by a byte below 216, LOW and FOURTH
// by REST. So no part waits for more than two others, and few instructions are left for the units that also do
// vpdpbusd.
static const uint8_t pairs[64] = {8, 7, 6, 5, 4, 3, 2, 1, 8, 7, 6, 5, 4, 3, 2, 1, 8, 7, 6, 5, 4, 3,
                                  2, 1, 8, 7, 6, 5, 4, 3, 2, 1, 8, 7, 6, 5, 4, 3, 2, 1, 8, 7, 6, 5,
                                  4, 3, 2, 1, 8, 7, 6, 5, 4, 3, 2, 1, 8, 7, 6, 5, 4, 3, 2, 1};
static const uint8_t firsts[64] = {2, 2, 2, 1, 1, 1, 0, 0, 2, 2, 2, 1, 1, 1, 0, 0, 2, 2, 2, 1, 1, 1,
                                   0, 0, 2, 2, 2, 1, 1, 1, 0, 0, 2, 2, 2, 1, 1, 1, 0, 0, 2, 2, 2, 1,
                                   1, 1, 0, 0, 2, 2, 2, 1, 1, 1, 0, 0, 2, 2, 2, 1, 1, 1, 0, 0};
static const uint8_t lows[64] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4,
                                 5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8};
static const uint8_t fourths[64] = {0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1,
                                    1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2};

static inline void decode(__m512i v, __m512i u[PARTS]) {
  const __m512i last = _mm512_set1_epi8((char)216); // and above, the pair is 0
  const __mmask64 some = _mm512_cmplt_epu8_mask(v, last);
  const __m512i eighth = _mm512_and_si512(_mm512_srli_epi16(v, 3), _mm512_set1_epi8(31));
  u[REST] = _mm512_min_epu8(eighth, _mm512_sub_epi8(v, last));
  u[PAIR] = _mm512_maskz_permutexvar_epi8(some, v, load(pairs));
  u[FIRST] = _mm512_maskz_permutexvar_epi8(some, v, load(firsts));
  u[LOW] = _mm512_permutexvar_epi8(u[REST], load(lows));
  u[FOURTH] = _mm512_permutexvar_epi8(u[REST], load(fourths));
}

// Five rows by `tokens` <= NR tokens over `blocks` blocks: bytes are decoded to parts once for all tokens.
// y [t][M_PAD] gains the products.
static inline __attribute__((always_inline)) void micro_kernel(const uint8_t *w, const uint8_t *x,
                                                               int32_t blocks, int tokens, int32_t *y) {
  __m512i acc[NR][PARTS] = {0};
  for (int32_t i = 0; i < 4 * blocks; i++, w += VB, x += VB) {
    __m512i u[PARTS];
    decode(load(w), u);
    for (int t = 0; t < tokens; t++) {
      const __m512i xt = load(x + (size_t)t * OPERAND_BYTES);
      for (int part = 0; part < PARTS; part++)
        acc[t][part] = _mm512_dpbusd_epi32(acc[t][part], u[part], xt);
    }
  }
  for (int t = 0; t < tokens; t++) {
    int32_t sums[PARTS];
    for (int part = 0; part < PARTS; part++)
      sums[part] = _mm512_reduce_add_epi32(acc[t][part]);
    add_rows(sums, y + (size_t)t * M_PAD);
  }
}

enum { MR = 5 };
_Static_assert(MR == ROWS && KC % BK == 0, "the rows of a byte and whole blocks");

// Panels [p, p_end) by `tokens` <= NR tokens over the cache block of columns from k0 on.
static void macro_kernel(const uint8_t *w, const uint8_t *x, int32_t tokens, int32_t *y, int32_t p,
                         int32_t p_end, int32_t k0) {
  const int32_t blocks = (K_PAD - k0 < KC ? K_PAD - k0 : KC) / BK;
  x += HEADER + k0;
  for (int32_t row = p * BM; row < p_end * BM; row += MR) {
    const uint8_t *wr =
        w + (size_t)(row / BM) * PANEL_BYTES + (size_t)k0 / BK * (PANEL_BYTES / BLOCKS) + row % BM * VB;
    switch (tokens) {
    case 1:
      micro_kernel(wr, x, blocks, 1, y + row);
      break;
    case 2:
      micro_kernel(wr, x, blocks, 2, y + row);
      break;
    }
  }
}

// The weights of MC rows over KC columns stay in the second-level cache while all tokens pass over them; the
// activations of NR tokens over KC columns stay in the first.
enum { MC = 1020, PANEL_BLOCK = MC / BM };

static void products(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0,
                     int32_t p1) {
  const int32_t parts = (n + NR - 1) / NR; // of the tokens, as even as possible
  for (int32_t p = p0; p < p1; p += PANEL_BLOCK) {
    const int32_t p_end = p1 - p < PANEL_BLOCK ? p1 : p + PANEL_BLOCK;
    for (int32_t t = 0; t < n; t++) {
      const int32_t sum = operand_sum(operand + (size_t)t * OPERAND_BYTES);
      for (int32_t row = p * BM; row < p_end * BM; row++)
        y[(size_t)t * M_PAD + row] = -sum;
    }
    for (int32_t k0 = 0; k0 < K_PAD; k0 += KC) {
      for (int32_t g = 0, t = 0; g < parts; g++) {
        const int32_t t_end = (int32_t)((int64_t)n * (g + 1) / parts);
        macro_kernel(w, operand + (size_t)t * OPERAND_BYTES, t_end - t, y + (size_t)t * M_PAD, p, p_end, k0);
        t = t_end;
      }
    }
  }
}

// Whole tiles of LANES tokens are looked up, not multiplied (BiQGEMM, arXiv:2005.09904). A table has an entry
// for each of the 81 ways to weight four activations by -1, 0 or +1: the sums of LANES tokens side by side,
// so that a load and an add do the work of 4 * LANES multiply-adds. One pass takes all rows through the
// tables of LUT_GROUPS groups of four columns, which stay in the nearest caches; then the next tables are
// built.
enum { LUT_GROUPS = 8, LANES = 32, ENTRIES = 81, STEP = 16 };
enum { PASSES = K_PAD / 4 / LUT_GROUPS, VECTOR_PASSES = VB / LUT_GROUPS };
enum { LUT_MC = 130 };
_Static_assert(LUT_MC <= M_PAD && LUT_MC % BM == 0, "whole panels");

// Look-ups are bound by loads; products with sums in registers need few. So half of the rows are multiplied
// while the others are looked up: WIDE rows by FEW tokens at a time. A lane is a row, so lanes are never
// added up.
enum { WIDE = 64, FEW = 4 };
enum { MOST_MULTIPLIED = LUT_MC / 2 / WIDE * WIDE, MOST_LOOKED_UP = LUT_MC / 2 + WIDE };
_Static_assert(LANES / FEW == VECTOR_PASSES && WIDE == 4 * STEP, "all tokens and rows go through a block");

// How many of `rows` rows are multiplied: the first ones.
static inline int32_t multiplied(int32_t rows) { return rows / 2 / WIDE * WIDE; }

enum { ROOM = (MOST_LOOKED_UP + STEP - 1) / STEP * STEP, STRIP = 80 };
_Static_assert(STRIP % BM == 0 && STRIP % STEP == 0, "rows are placed by strips of whole panels and steps");
_Static_assert(LUT_GROUPS == 8 && VB % STEP == 0 && LANES % STEP == 0,
               "a row has a word of entries in a pass");

// After FLUSH passes the int16 sums are added to int32: until then they cannot overflow.
enum { FLUSH = 252 / 4 / LUT_GROUPS };
_Static_assert(4 * 128 * FLUSH * LUT_GROUPS <= INT16_MAX, "int16 sums over FLUSH passes are exact");

typedef int16_t lanes __attribute__((vector_size(2 * LANES)));
typedef int32_t wide_lanes __attribute__((vector_size(4 * LANES), aligned(64)));
typedef int8_t bytes __attribute__((vector_size(STEP)));
typedef int16_t wide_bytes __attribute__((vector_size(2 * STEP)));
typedef int32_t sums __attribute__((vector_size(4 * STEP)));
typedef uint8_t columns __attribute__((vector_size(VB)));
typedef uint64_t words __attribute__((vector_size(VB)));

typedef struct {
  const uint8_t *operand; // [n][OPERAND_BYTES]
  int32_t n, rows;
  int32_t *y; // [n][M_PAD]
} tile;

typedef struct {
  lanes table[LUT_GROUPS][ENTRIES];
  lanes x[STEP][4]; // the activations of STEP groups
  lanes part[ROOM]; // sums since the last flush
  wide_lanes total[ROOM];
  // Of each group of a row, its place in the table.
  uint8_t entry[PASSES][ROOM][LUT_GROUPS];
  // Of the rows that are multiplied: a vector is four columns of every quarter, of STEP rows.
  sums code[BLOCKS][MOST_MULTIPLIED / WIDE][STEP][WIDE / STEP];
} workspace;

static inline columns least(columns a, columns b) {
  const columns first = (columns)(a < b); // 255 where true
  return (a & first) | (b & ~first);
}

// How often a byte below 3 place holds place.
static inline columns digit(columns v, uint8_t place) {
  return -((columns)(v >= place) + (columns)(v >= (uint8_t)(2 * place)));
}

// Four codes of each row, from the same place of a block's four vectors, become a base-4 number. Of the two
// rows of a pair, and of the three of a rest, the last follows from the numbers of both and of the others:
// bytes wrap around.
static inline void codes_of(const uint8_t *w, columns c[ROWS]) {
  for (int quarter = 0; quarter < 4; quarter++) {
    columns v;
    memcpy(&v, w + quarter * VB, sizeof v);
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

// The codes of STRIP rows over a block. Panels beyond the last repeat it.
static void load_codes(const uint8_t *w, int32_t rows, int32_t row, int32_t b, columns v[STRIP]) {
  memset(v, 0, STRIP * sizeof *v);
  for (int i = 0; i < STRIP; i += ROWS) {
    const int32_t p = (row + i) / ROWS, last = rows / ROWS - 1;
    const uint8_t *from = w + (size_t)(p < last ? p : last) * PANEL_BYTES + b * BK;
    for (int quarter = 0; quarter < 4; quarter++)
      __builtin_prefetch(from + 8 * PANEL_BYTES + quarter * VB);
    codes_of(from, v + i);
  }
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

// The elements of 8 vectors shuffled like a deck of cards, its halves riffled. After 3 rounds
// neighbours are the elements that stood in the same lane.
static inline void riffle_words(words v[8]) {
  words u[4][2];
  for (int i = 0; i < 4; i++) {
    const words a = v[i], b = v[4 + i];
    u[i][0] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    u[i][1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  }
  memcpy(v, u, sizeof u);
}

// The entries of STEP rows, of which those of a pass become contiguous: a byte c0 c1 c2 c3 of base-4 digits
// becomes the base-3 number of the same digits. What has a digit 3 is no code, and becomes the last entry.
static inline void place_entries(const columns *code, int32_t b, int32_t row, workspace *s) {
  for (int r = 0; r < STEP; r += 8) {
    words v[8];
    for (int i = 0; i < 8; i++) {
      const columns c = code[r + i], entry = c - (c >> 2) - 3 * (c >> 4) - 9 * (c >> 6);
      const columns inside = (columns)(entry < ENTRIES);
      v[i] = (words)((entry & inside) | ((ENTRIES - 1) & ~inside));
    }
    for (int round = 0; round < 3; round++)
      riffle_words(v);
    for (int i = 0; i < VECTOR_PASSES; i++)
      memcpy(s->entry[b * VECTOR_PASSES + i][row + r], (const uint8_t *)v + i * 8 * LUT_GROUPS,
             8 * LUT_GROUPS);
  }
}

// The codes of STEP rows over a block: four columns of every row become a vector.
static inline void place_codes(const columns *code, int32_t b, int32_t row, workspace *s) {
  sums v[STEP];
  memcpy(v, code, sizeof v);
  for (int round = 0; round < 4; round++)
    riffle_sums(v);
  for (int i = 0; i < STEP; i++)
    s->code[b][row / WIDE][i][row % WIDE / STEP] = v[i];
}

static void place(const uint8_t *w, int32_t rows, workspace *s) {
  for (int32_t b = 0; b < BLOCKS; b++) {
    for (int32_t strip = 0; strip < rows; strip += STRIP) {
      columns code[STRIP];
      load_codes(w, rows, strip, b, code);
      for (int32_t row = strip; row < strip + STRIP && row < rows; row += STEP) {
        if (row < multiplied(rows))
          place_codes(code + (row - strip), b, row, s);
        else
          place_entries(code + (row - strip), b, row - multiplied(rows), s);
      }
    }
  }
}

// The activations of STEP groups; lanes beyond n repeat the last token and are not stored in the end.
static void load_activations(const uint8_t *q, int32_t n, workspace *s) {
  for (int quarter = 0; quarter < 4; quarter++) {
    for (int t0 = 0; t0 < LANES; t0 += STEP) {
      bytes v[STEP];
      for (int t = 0; t < STEP; t++)
        memcpy(&v[t], q + (size_t)(t0 + t < n ? t0 + t : n - 1) * OPERAND_BYTES + quarter * VB, STEP);
      for (int round = 0; round < 4; round++)
        riffle_bytes(v);
      for (int g = 0; g < STEP; g++) {
        const wide_bytes x = __builtin_convertvector(v[g], wide_bytes);
        memcpy((int16_t *)&s->x[g][quarter] + t0, &x, sizeof x);
      }
    }
  }
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

// One row in one pass: a word holds the places of its entries. In the last pass before a flush its int16 sums
// are added to the total.
static inline __attribute__((always_inline)) void lut_micro_kernel(int32_t pass, int32_t r, int last,
                                                                   workspace *s) {
  lanes sum = s->part[r];
  uint64_t entries;
  memcpy(&entries, s->entry[pass][r], sizeof entries);
  for (int g = 0; g < LUT_GROUPS; g++)
    sum += s->table[g][(uint8_t)(entries >> 8 * g)];
  if (last)
    s->total[r] += __builtin_convertvector(sum, wide_lanes);
  s->part[r] = last ? (lanes){0} : sum;
}

// WIDE rows are looked up in one pass while as many others are multiplied by FEW tokens over the block of
// columns that the pass lies in. Four loads of activations serve sixteen vpdpbusd.
static inline __attribute__((always_inline)) void mixed_micro_kernel(int32_t pass, int32_t row, int last,
                                                                     const int8_t *const x[FEW],
                                                                     int32_t *const y[FEW], workspace *s) {
  enum { VECTORS = WIDE / STEP };
  const sums(*code)[VECTORS] = s->code[pass / VECTOR_PASSES][row / WIDE];
  __m512i acc[FEW][VECTORS];
  for (int t = 0; t < FEW; t++)
    for (int v = 0; v < VECTORS; v++)
      acc[t][v] = load(y[t] + row + v * STEP);
  for (int i = 0; i < STEP; i++) {
    __m512i w[VECTORS];
    memcpy(w, code[i], sizeof w);
#pragma clang loop unroll(full)
    for (int quarter = 0; quarter < 4; quarter++) {
      lut_micro_kernel(pass, row + 4 * i + quarter, last, s);
      for (int t = 0; t < FEW; t++) {
        int32_t four;
        memcpy(&four, x[t] + quarter * VB + 4 * i, sizeof four);
        for (int v = 0; v < VECTORS; v++) {
          const __m512i c = _mm512_and_si512(_mm512_srli_epi16(w[v], 6 - 2 * quarter), _mm512_set1_epi8(3));
          acc[t][v] = _mm512_dpbusd_epi32(acc[t][v], c, _mm512_set1_epi32(four));
        }
      }
    }
  }
  for (int t = 0; t < FEW; t++)
    for (int v = 0; v < VECTORS; v++)
      _mm512_storeu_si512(y[t] + row + v * STEP, acc[t][v]);
}

// One pass over the rows. The passes of a block multiply all tokens by it, FEW in each; those beyond the last
// repeat it.
static inline __attribute__((always_inline)) void lut_pass(const tile *t, int32_t pass, int last,
                                                           workspace *s) {
  const int32_t token = pass % VECTOR_PASSES * FEW, both = token < t->n ? multiplied(t->rows) : 0;
  const int8_t *x[FEW];
  int32_t *y[FEW];
  for (int i = 0; i < FEW; i++) {
    const int32_t at = token + i < t->n ? token + i : t->n - 1;
    x[i] = (const int8_t *)t->operand + (size_t)at * OPERAND_BYTES + HEADER + pass / VECTOR_PASSES * BK;
    y[i] = t->y + (size_t)at * M_PAD;
  }
  for (int32_t row = 0; row < both; row += WIDE)
    mixed_micro_kernel(pass, row, last, x, y, s);
  for (int32_t row = both; row < t->rows - multiplied(t->rows); row++)
    lut_micro_kernel(pass, row, last, s);
}

static void start_products(const tile *t) {
  for (int32_t token = 0; token < t->n; token++) {
    const int32_t sum = operand_sum(t->operand + (size_t)token * OPERAND_BYTES);
    for (int32_t row = 0; row < multiplied(t->rows); row++)
      t->y[(size_t)token * M_PAD + row] = -sum;
  }
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
  memset(s->part, 0, (size_t)rows * sizeof *s->part);
  memset(s->total, 0, (size_t)rows * sizeof *s->total);
  for (int32_t pass = 0; pass < PASSES; pass++) {
    const int32_t group = pass * LUT_GROUPS;
    if (group % STEP == 0)
      load_activations(t->operand + HEADER + group / VB * BK + group % VB, t->n, s);
    build_tables(s->x + group % STEP, s);
    if (pass % FLUSH == FLUSH - 1 || pass == PASSES - 1)
      lut_pass(t, pass, 1, s);
    else
      lut_pass(t, pass, 0, s);
  }
  for (int32_t r = 0; r < rows; r += STEP)
    for (int32_t token = 0; token < t->n; token += STEP)
      store_square(s->total + r, token, rows - r, t->n - token, t->y + (size_t)token * M_PAD + skip + r);
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

const bg_kernel bg_t5_gemm_m127_k512_bm5_bk256_nr2_g8_mixed__avx512vbmi = {
    .symbol = "bg_t5_gemm_m127_k512_bm5_bk256_nr2_g8_mixed__avx512vbmi",
    .m = M,
    .k = K,
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
};
