// bg_t5_gemm_m9_k512_bm5_bk256_kc256__amx
//
// gemm of W [9, 512] in layout t5_bm5_bk256 on amx.
// Generated from templates/t5/amx.c.j2 by:
//   bitgen gen bg_t5_gemm_m9_k512_bm5_bk256_kc256__amx

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { M = 9, K = 512, M_PAD = 10, K_PAD = 512 };
enum { BM = 5, BK = 256, PANELS = 2 };
enum { WEIGHT_BYTES = 1024, OPERAND_BYTES = 576 };
enum { NR = 1, KC = 256 };
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

// AMX: four instructions multiply a square, at most 32 tokens by 32 rows, over 64 columns; its sums are four
// tiles. A tile of activations is 16 tokens as they lie. A tile of weights is transposed: each of its 16
// lines holds four columns of 16 rows. The weights of MC rows over a cache block of columns are unpacked
// once; they and the sums stay in the second-level cache, the activations of a square of tokens in the first.
enum { SIDE = 16, SQUARE = 2 * SIDE, LINE = 64, STEPS = KC / LINE, MC = 320, NC = 512 };
_Static_assert(MC % SQUARE == 0 && MC % BM == 0 && KC % BK == 0, "whole squares, panels and blocks");

typedef int8_t tile[SIDE][LINE];
typedef int32_t square[SQUARE][SQUARE]; // [token][row]

typedef struct { // what ldtilecfg reads
  uint8_t palette, start_row, reserved[14];
  uint16_t line_bytes[16];
  uint8_t lines[16];
} tile_shapes;
_Static_assert(sizeof(tile_shapes) == 64, "as the manual has it");

typedef struct {
  tile weights[MC / SQUARE][STEPS][2]; // of a square's rows, 64 columns of each half
  square sums[NC / SQUARE][MC / SQUARE];
  tile_shapes shapes; // as last configured; all zero at first
} workspace;

typedef struct { // rows [row, row_end), at most MC of them, over `blocks` blocks from column k0 on
  int32_t row, row_end, k0, blocks;
} strip;

// The weights of a strip, -1..1. Rows beyond its last, up to a whole square, hold any: nothing looks at their
// sums.
static void unpack(const uint8_t *w, const strip *s, tile (*out)[STEPS][2]);

// From a byte of a panel to the one that unpack will read in its place in the next strip: the panel's next
// cache block, or the first of the rows that follow.
static inline ptrdiff_t next_strip(const strip *s) {
  enum { BLOCK_BYTES = PANEL_BYTES / BLOCKS };
  return s->k0 + KC < K_PAD ? KC / BK * BLOCK_BYTES
                            : MC / BM * PANEL_BYTES - (ptrdiff_t)(s->k0 / BK) * BLOCK_BYTES;
}

static inline int32_t squares_of(int32_t n) { return (n + SQUARE - 1) / SQUARE; }
static inline int32_t first_half(int32_t tokens) { return tokens > SIDE ? (tokens + 1) / 2 : tokens; }

// Tiles 0-3 are sums [token][row], 4 and 5 the activations of each half of the tokens, 6 and 7 the weights of
// each half of the rows. No token beyond the last has a place in them: it may not be there to read.
static void configure(int32_t tokens, tile_shapes *now) {
  const uint8_t first = (uint8_t)first_half(tokens), second = (uint8_t)(tokens - first);
  const uint16_t line = second ? LINE : 0;
  const tile_shapes wanted = {
      .palette = 1,
      .line_bytes = {LINE, LINE, line, line, LINE, line, LINE, LINE},
      .lines = {first, first, second, second, first, second, SIDE, SIDE},
  };
  if (memcmp(now, &wanted, sizeof wanted) != 0) { // it takes hundreds of cycles
    *now = wanted;
    _tile_loadconfig(now);
  }
}

// Sixteen bytes each of rows j, j + 4, j + 8 and j + 12.
static inline __m512i load_rows(const uint8_t *const row[SIDE], int j, size_t at) {
  const __m512i a = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(row[j] + at)));
  const __m512i b = _mm512_inserti32x4(a, _mm_loadu_si128((const __m128i *)(row[j + 4] + at)), 1);
  const __m512i c = _mm512_inserti32x4(b, _mm_loadu_si128((const __m128i *)(row[j + 8] + at)), 2);
  return _mm512_inserti32x4(c, _mm_loadu_si128((const __m128i *)(row[j + 12] + at)), 3);
}

// Sixteen bytes of 16 rows become four vectors of four bytes of every row.
static inline void transpose(const uint8_t *const row[SIDE], size_t at, __m512i v[4]) {
  const __m512i a = load_rows(row, 0, at), b = load_rows(row, 1, at), c = load_rows(row, 2, at),
                d = load_rows(row, 3, at);
  const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
  const __m512i ab_high = _mm512_unpackhi_epi32(a, b), cd_high = _mm512_unpackhi_epi32(c, d);
  v[0] = _mm512_unpacklo_epi64(ab, cd);
  v[1] = _mm512_unpackhi_epi64(ab, cd);
  v[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
  v[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
}

// One square over `steps` times 64 columns: `to` is `from`, or zeros where it is NULL, plus the products. In
// `to` a token's sums lie `stride` bytes behind those of the token before.
static inline __attribute__((always_inline)) void micro_kernel(const uint8_t *x, int32_t tokens, tile (*w)[2],
                                                               int32_t steps, int has_second,
                                                               const square *from, int32_t *to,
                                                               size_t stride) {
  const int32_t first = first_half(tokens);
  const uint8_t *x1 = x + (size_t)first * OPERAND_BYTES;
  if (from) {
    _tile_loadd(0, (*from)[0], sizeof **from);
    _tile_loadd(1, (*from)[0] + SIDE, sizeof **from);
    if (has_second) {
      _tile_loadd(2, (*from)[first], sizeof **from);
      _tile_loadd(3, (*from)[first] + SIDE, sizeof **from);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (has_second) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int32_t i = 0; i < steps; i++) {
    _tile_loadd(4, x + i * LINE, OPERAND_BYTES);
    _tile_loadd(6, w[i][0], LINE);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, w[i][1], LINE);
    _tile_dpbssd(1, 4, 7);
    if (has_second) {
      _tile_loadd(5, x1 + i * LINE, OPERAND_BYTES);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, to, stride);
  _tile_stored(1, to + SIDE, stride);
  if (has_second) {
    to += first * stride / sizeof *to;
    _tile_stored(2, to, stride);
    _tile_stored(3, to + SIDE, stride);
  }
}

// A square of a strip. After the last cache block its sums go to y, by way of its own where the strip ends
// within.
static void multiply_square(const uint8_t *x, int32_t tokens, const strip *s, int32_t at, tile (*w)[2],
                            square *sums, int32_t *y) {
  const int32_t row = s->row + at * SQUARE, is_last = s->k0 + KC >= K_PAD,
                is_whole = row + SQUARE <= s->row_end, steps = s->blocks * BK / LINE;
  const square *from = s->k0 ? sums : NULL;
  int32_t *to = is_last && is_whole ? y + row : **sums;
  const size_t stride = is_last && is_whole ? M_PAD * sizeof *y : sizeof **sums;
  if (tokens > SIDE)
    micro_kernel(x, tokens, w, steps, 1, from, to, stride);
  else
    micro_kernel(x, tokens, w, steps, 0, from, to, stride);
  if (is_last && !is_whole)
    for (int32_t t = 0; t < tokens; t++)
      memcpy(y + (size_t)t * M_PAD + row, (*sums)[t], (size_t)(s->row_end - row) * sizeof *y);
}

// A strip by all tokens, at most NC, in squares as even as possible, larger ones first.
static void macro_kernel(const uint8_t *operand, int32_t n, const strip *s, workspace *work, int32_t *y) {
  const int32_t squares = squares_of(n);
  for (int32_t i = 0, t = 0, tokens; i < squares; i++, t += tokens) {
    tokens = n / squares + (i < n % squares);
    configure(tokens, &work->shapes);
    for (int32_t r = 0; r < squares_of(s->row_end - s->row); r++)
      multiply_square(operand + (size_t)t * OPERAND_BYTES + HEADER + s->k0, tokens, s, r, work->weights[r],
                      &work->sums[i][r], y + (size_t)t * M_PAD);
  }
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  workspace *work = scratch;
  memset(&work->shapes, 0, sizeof work->shapes);
  for (int32_t t = 0; t < n; t += NC) {
    const int32_t tokens = n - t < NC ? n - t : NC;
    for (int32_t row = p0 * BM; row < p1 * BM; row += MC) {
      strip s = {.row = row, .row_end = p1 * BM - row < MC ? p1 * BM : row + MC};
      for (; s.k0 < K_PAD; s.k0 += KC) {
        s.blocks = (K_PAD - s.k0 < KC ? K_PAD - s.k0 : KC) / BK;
        unpack(w, &s, work->weights);
        macro_kernel(operand + (size_t)t * OPERAND_BYTES, tokens, &s, work, y + (size_t)t * M_PAD);
      }
    }
  }
  _tile_release();
}

// By rest: its first code.
static const uint8_t ninths[64] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1,
                                   1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2};

// The weights of five rows.
static inline void decode_rows(const uint8_t *w, int8_t rows[ROWS][LINE]) {
  const __m128i rest = _mm_setr_epi8(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0);
  __m512i u[PARTS];
  decode(load(w), u);
  const __m512i one = _mm512_set1_epi8(1), ninth = _mm512_permutexvar_epi8(u[REST], load(ninths));
  _mm512_store_si512(rows[0], _mm512_sub_epi8(u[FIRST], one));
  _mm512_store_si512(rows[1], _mm512_sub_epi8(by_table(rest, u[PAIR]), one));
  _mm512_store_si512(rows[2], _mm512_sub_epi8(ninth, one));
  _mm512_store_si512(rows[3], _mm512_sub_epi8(u[FOURTH], one));
  _mm512_store_si512(rows[4], _mm512_sub_epi8(by_table(rest, u[LOW]), one));
}

// The weights of a strip's rows over LINE columns; panels beyond the last repeat it.
static void decode_strip(const uint8_t *w, const strip *s, int32_t column, int32_t rows,
                         int8_t (*out)[LINE]) {
  for (int32_t r = 0; r < rows; r += ROWS) {
    const int32_t at = s->row + r < s->row_end ? s->row + r : s->row_end - ROWS;
    const uint8_t *from = w + (size_t)(at / ROWS) * PANEL_BYTES + column;
    __builtin_prefetch(from + next_strip(s), 0, 2);
    decode_rows(from, out + r);
  }
}

static void unpack(const uint8_t *w, const strip *s, tile (*out)[STEPS][2]) {
  _Alignas(64) int8_t rows[MC][LINE];
  const int32_t halves = 2 * squares_of(s->row_end - s->row);
  for (int32_t i = 0; i < s->blocks * BK / LINE; i++) {
    decode_strip(w, s, s->k0 + i * LINE, halves * SIDE, rows);
    for (int32_t h = 0; h < halves; h++) {
      const uint8_t *row[SIDE];
      for (int j = 0; j < SIDE; j++)
        row[j] = (const uint8_t *)rows[h * SIDE + j];
      for (int line = 0; line < SIDE; line += 4)
        transpose(row, 4 * line, (__m512i *)out[h / 2][i][h % 2][line]);
    }
  }
}

const bg_kernel bg_t5_gemm_m9_k512_bm5_bk256_kc256__amx = {
    .symbol = "bg_t5_gemm_m9_k512_bm5_bk256_kc256__amx",
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
