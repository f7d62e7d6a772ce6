// bg_t5_gemm_m9_k128_bm5_bk64_nr2_kc64_g8__neon
//
// gemm of W [9, 128] in layout t5_bm5_bk64 on neon.
// Generated from templates/t5/neon.c.j2 by:
//   bitgen gen bg_t5_gemm_m9_k128_bm5_bk64_nr2_kc64_g8__neon

#include <arm_neon.h>
#include <string.h>

#include "kernel.h"

enum { M = 9, K = 128, M_PAD = 10, K_PAD = 128 };
enum { BM = 5, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 256, OPERAND_BYTES = 192 };
enum { NR = 2, KC = 64 };
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
enum { MC = 8190, PANEL_BLOCK = MC / BM };

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
enum { LUT_GROUPS = 8, LANES = 16, ENTRIES = 81, STEP = 16 };
enum { PASSES = K_PAD / 4 / LUT_GROUPS, VECTOR_PASSES = VB / LUT_GROUPS };
enum { LUT_MC = 10 };
_Static_assert(LUT_MC <= M_PAD && LUT_MC % BM == 0, "whole panels");
enum { MOST_LOOKED_UP = LUT_MC };

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
    u[i][0] = __builtin_shufflevector(a, b, 0, 2);
    u[i][1] = __builtin_shufflevector(a, b, 1, 3);
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

static void place(const uint8_t *w, int32_t rows, workspace *s) {
  for (int32_t b = 0; b < BLOCKS; b++) {
    for (int32_t strip = 0; strip < rows; strip += STRIP) {
      columns code[STRIP];
      load_codes(w, rows, strip, b, code);
      for (int32_t row = strip; row < strip + STRIP && row < rows; row += STEP) {
        place_entries(code + (row - strip), b, row, s);
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

static inline __attribute__((always_inline)) void lut_pass(const tile *t, int32_t pass, int last,
                                                           workspace *s) {
  for (int32_t r = 0; r < t->rows; r++)
    lut_micro_kernel(pass, r, last, s);
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
  const int32_t skip = 0, rows = t->rows;
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

const bg_kernel bg_t5_gemm_m9_k128_bm5_bk64_nr2_kc64_g8__neon = {
    .symbol = "bg_t5_gemm_m9_k128_bm5_bk64_nr2_kc64_g8__neon",
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
