// bg_i2_s_gemm_m2560_k6912_bm4_bk256_nr6_kc1280__amx
//
// gemm of W [2560, 6912] in layout i2_s_bm4_bk256 on amx.
// Generated from templates/i2_s/amx.c.j2 by:
//   bitgen gen bg_i2_s_gemm_m2560_k6912_bm4_bk256_nr6_kc1280__amx

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { M = 2560, K = 6912, M_PAD = 2560, K_PAD = 6912 };
enum { BM = 4, BK = 256, PANELS = 640 };
enum { WEIGHT_BYTES = 4423680, OPERAND_BYTES = 6976 };
enum { NR = 6, KC = 1280 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

enum { VB = 64, BLOCKS = K_PAD / BK, PANEL_BYTES = BM * K_PAD / 4 };
_Static_assert(BK == 4 * VB && K_PAD % BK == 0, "a block of one row is one vector of 256 codes");

// One token's operand: int32 sum(q) alone on a cache line, then q padded with zeros to K_PAD. The sum undoes
// the + 1 of the codes: sum (w + 1) q - sum q = sum w q.
enum { HEADER = 64 };

static void prepare(const int8_t *q, int32_t n, uint8_t *operand) {
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

static inline __m512i load(const void *p) { return _mm512_loadu_si512(p); }

// Codes 0..2 of the four quarters of a block.
static inline void decode(__m512i v, __m512i c[4]) {
  const __m512i low2 = _mm512_set1_epi8(3);
  c[0] = _mm512_and_si512(_mm512_srli_epi16(v, 6), low2);
  c[1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low2);
  c[2] = _mm512_and_si512(_mm512_srli_epi16(v, 2), low2);
  c[3] = _mm512_and_si512(v, low2);
}

enum { MR = 2 };
_Static_assert(BM % MR == 0 && KC % BK == 0, "whole pairs of rows and whole blocks");

// MR rows over `blocks` blocks against `tokens` <= NR tokens, each product's sum in a register: the codes are
// unpacked once for all tokens and the activations loaded once for all rows. y [t][M_PAD] gains the products.
static inline __attribute__((always_inline)) void rows_times(const uint8_t *w, const uint8_t *x,
                                                             int32_t blocks, int tokens, int32_t *y) {
  __m512i acc[MR][NR] = {0};
  for (int32_t b = 0; b < blocks; b++, w += BM * VB, x += BK) {
    __m512i c[MR][4];
    for (int r = 0; r < MR; r++)
      decode(load(w + r * VB), c[r]);
    for (int t = 0; t < tokens; t++) {
      const uint8_t *q = x + (size_t)t * OPERAND_BYTES;
      for (int quarter = 0; quarter < 4; quarter++) {
        const __m512i xt = load(q + quarter * VB);
        for (int r = 0; r < MR; r++)
          acc[r][t] = _mm512_dpbusd_epi32(acc[r][t], c[r][quarter], xt);
      }
    }
  }
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < MR; r++)
      y[(size_t)t * M_PAD + r] += _mm512_reduce_add_epi32(acc[r][t]);
}

// Panels [p, p_end) over the cache block of columns that starts at k0, for `tokens` <= NR tokens.
static void panels_times(const uint8_t *w, const uint8_t *x, int32_t tokens, int32_t *y, int32_t p,
                         int32_t p_end, int32_t k0) {
  const int32_t blocks = (K_PAD - k0 < KC ? K_PAD - k0 : KC) / BK;
  x += HEADER + k0;
  for (int32_t row = p * BM; row < p_end * BM; row += MR) {
    const uint8_t *wr =
        w + (size_t)(row / BM) * PANEL_BYTES + (size_t)k0 / BK * (PANEL_BYTES / BLOCKS) + row % BM * VB;
    switch (tokens) {
    case 1:
      rows_times(wr, x, blocks, 1, y + row);
      break;
    case 2:
      rows_times(wr, x, blocks, 2, y + row);
      break;
    case 3:
      rows_times(wr, x, blocks, 3, y + row);
      break;
    case 4:
      rows_times(wr, x, blocks, 4, y + row);
      break;
    case 5:
      rows_times(wr, x, blocks, 5, y + row);
      break;
    case 6:
      rows_times(wr, x, blocks, 6, y + row);
      break;
    }
  }
}

// As many panels as fill a part of the second-level cache stay there while all tokens pass over them; a cache
// block of NR tokens' activations stays in the first.
enum { CACHED = 128 << 10, FIT = CACHED / (BM * KC / 4), PANEL_BLOCK = FIT > 1 ? FIT : 1 };

static void products(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0,
                     int32_t p1) {
  const int32_t groups = (n + NR - 1) / NR; // of tokens, as even as can be
  for (int32_t p = p0; p < p1; p += PANEL_BLOCK) {
    const int32_t p_end = p1 - p < PANEL_BLOCK ? p1 : p + PANEL_BLOCK;
    for (int32_t t = 0; t < n; t++) {
      const int32_t sum = operand_sum(operand + (size_t)t * OPERAND_BYTES);
      for (int32_t row = p * BM; row < p_end * BM; row++)
        y[(size_t)t * M_PAD + row] = -sum;
    }
    for (int32_t k0 = 0; k0 < K_PAD; k0 += KC) {
      for (int32_t g = 0, t = 0; g < groups; g++) {
        const int32_t t_end = (int32_t)((int64_t)n * (g + 1) / groups);
        panels_times(w, operand + (size_t)t * OPERAND_BYTES, t_end - t, y + (size_t)t * M_PAD, p, p_end, k0);
        t = t_end;
      }
    }
  }
}

// More than NR tokens by AMX: a square of at most 32 tokens and 32 rows, its sums in four tiles, gains 64
// columns in four products. A tile of activations is 16 tokens as they lie. A tile of weights is transposed:
// each of its 16 lines holds four columns of 16 rows. The codes of 32 rows over a cache block are expanded
// once and stay in the nearest caches while all tokens pass over them.
enum { SIDE = 16, LINE = 64, QUARTERS = BK / LINE, ROWS_CACHED = 256 };
_Static_assert(BM % 2 == 0, "a square of rows has two equal halves");

typedef uint8_t tile[SIDE][LINE];

typedef struct { // what ldtilecfg reads
  uint8_t palette, start_row, reserved[14];
  uint16_t line_bytes[16];
  uint8_t lines[16];
} tile_shapes;
_Static_assert(sizeof(tile_shapes) == 64, "as the manual has it");

typedef struct {
  tile weights[KC / LINE][2]; // of 64 columns, each half of the rows
  tile_shapes shapes;         // as last configured; all zero at first
} workspace;

// Tiles 0-3 are sums [token][row], 4 and 5 the activations of each half of the tokens, 6 and 7 the weights of
// each half of the rows. Only what there is has a place in them: nothing beyond n or the rows is touched.
static void configure(int32_t tokens, int32_t half_rows, tile_shapes *now) {
  const uint8_t first = (uint8_t)((tokens + 1) / 2), second = (uint8_t)(tokens / 2);
  const uint16_t row_bytes = (uint16_t)(4 * half_rows);
  const tile_shapes wanted = {
      .palette = 1,
      .line_bytes = {row_bytes, row_bytes, row_bytes, row_bytes, LINE, LINE, row_bytes, row_bytes},
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

// The codes of `rows` <= 16 rows over `blocks` blocks from column k0 on; lines beyond repeat the last row.
static void expand(const uint8_t *w, int32_t first_row, int32_t rows, int32_t k0, int32_t blocks, int half,
                   tile (*out)[2]) {
  const uint8_t *row[SIDE];
  for (int i = 0; i < SIDE; i++) {
    const int32_t r = first_row + (i < rows ? i : rows - 1);
    row[i] = w + (size_t)(r / BM) * PANEL_BYTES + (size_t)k0 / 4 * BM + r % BM * VB;
  }
  for (int32_t b = 0; b < blocks; b++, out += QUARTERS) {
    for (int line = 0; line < SIDE; line += 4) {
      __m512i v[4], c[QUARTERS];
      transpose(row, (size_t)b * BM * VB + 4 * line, v);
      for (int i = 0; i < 4; i++) {
        decode(v[i], c);
        for (int quarter = 0; quarter < QUARTERS; quarter++)
          _mm512_store_si512(out[quarter][half][line + i], c[quarter]);
      }
    }
  }
}

// One square over `steps` times 64 columns: y [token][M_PAD] gains the products of codes and activations.
static void square_times(tile (*w)[2], const uint8_t *x, int32_t steps, int32_t tokens, int32_t half_rows,
                         int32_t *y) {
  enum { Y_BYTES = 4 * M_PAD };
  const int32_t first = (tokens + 1) / 2;
  const uint8_t *x1 = x + (size_t)first * OPERAND_BYTES;
  int32_t *y1 = y + (size_t)first * M_PAD;
  _tile_loadd(0, y, Y_BYTES);
  _tile_loadd(1, y + half_rows, Y_BYTES);
  _tile_loadd(2, y1, Y_BYTES);
  _tile_loadd(3, y1 + half_rows, Y_BYTES);
  for (int32_t i = 0; i < steps; i++) {
    _tile_loadd(4, x + i * LINE, OPERAND_BYTES);
    _tile_loadd(6, w[i][0], LINE);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, w[i][1], LINE);
    _tile_dpbsud(1, 4, 7);
    _tile_loadd(5, x1 + i * LINE, OPERAND_BYTES);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
  _tile_stored(0, y, Y_BYTES);
  _tile_stored(1, y + half_rows, Y_BYTES);
  _tile_stored(2, y1, Y_BYTES);
  _tile_stored(3, y1 + half_rows, Y_BYTES);
}

// All tokens times rows [row, row + 2 * half_rows), over the cache block of columns that starts at k0.
static void rows_by_tiles(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t row,
                          int32_t half_rows, int32_t k0, workspace *s) {
  const int32_t blocks = (K_PAD - k0 < KC ? K_PAD - k0 : KC) / BK;
  const int32_t squares = (n + 2 * SIDE - 1) / (2 * SIDE); // of tokens, as even as can be, larger ones first
  for (int half = 0; half < 2; half++)
    expand(w, row + half * half_rows, half_rows, k0, blocks, half, s->weights);
  for (int32_t i = 0, t = 0, tokens; i < squares; i++, t += tokens) {
    tokens = n / squares + (i < n % squares);
    configure(tokens, half_rows, &s->shapes);
    square_times(s->weights, operand + (size_t)t * OPERAND_BYTES + HEADER + k0, blocks * QUARTERS, tokens,
                 half_rows, y + (size_t)t * M_PAD + row);
  }
}

// The sums of ROWS_CACHED rows stay in the second-level cache over all cache blocks of columns.
static void by_tiles(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t row0,
                     int32_t row_end, workspace *s) {
  const int32_t squares = (row_end - row0 + 2 * SIDE - 1) / (2 * SIDE), pairs = (row_end - row0) / 2;
  for (int32_t t = 0; t < n; t++) {
    const int32_t sum = operand_sum(operand + (size_t)t * OPERAND_BYTES);
    for (int32_t row = row0; row < row_end; row++)
      y[(size_t)t * M_PAD + row] = -sum;
  }
  for (int32_t k0 = 0; k0 < K_PAD; k0 += KC)
    for (int32_t i = 0, row = row0, half_rows; i < squares; i++, row += 2 * half_rows) {
      half_rows = pairs / squares + (i < pairs % squares);
      rows_by_tiles(w, operand, n, y, row, half_rows, k0, s);
    }
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  workspace *s = scratch;
  if (n <= NR) { // expanding the weights would take longer
    products(w, operand, n, y, p0, p1);
    return;
  }
  memset(&s->shapes, 0, sizeof s->shapes);
  for (int32_t row = p0 * BM; row < p1 * BM; row += ROWS_CACHED)
    by_tiles(w, operand, n, y, row, p1 * BM - row < ROWS_CACHED ? p1 * BM : row + ROWS_CACHED, s);
  _tile_release();
}

const bg_kernel bg_i2_s_gemm_m2560_k6912_bm4_bk256_nr6_kc1280__amx = {
    .symbol = "bg_i2_s_gemm_m2560_k6912_bm4_bk256_nr6_kc1280__amx",
    .m = M,
    .k = K,
    .m_pad = M_PAD,
    .panels = PANELS,
    .max_n = INT32_MAX,
    .weight_bytes = WEIGHT_BYTES,
    .operand_bytes = OPERAND_BYTES,
    .scratch_bytes = sizeof(workspace),
    .prepare = prepare,
    .run = run,
};
