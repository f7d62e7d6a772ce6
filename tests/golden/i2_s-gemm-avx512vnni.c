// bg_i2_s_gemm_m2560_k6912_bm4_bk256_nr8_kc2304__avx512vnni
//
// gemm of W [2560, 6912] in layout i2_s_bm4_bk256 on avx512vnni.
// Generated from templates/i2_s/avx512vnni.c.j2 by:
//   bitgen gen bg_i2_s_gemm_m2560_k6912_bm4_bk256_nr8_kc2304__avx512vnni

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { M = 2560, K = 6912, M_PAD = 2560, K_PAD = 6912 };
enum { BM = 4, BK = 256, PANELS = 640 };
enum { WEIGHT_BYTES = 4423680, OPERAND_BYTES = 6976 };
enum { NR = 8, KC = 2304 };
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
// Each row asks for its part of the next panel: few tokens leave no time to wait for memory.
enum { AHEAD = PANEL_BYTES };
_Static_assert(BM % MR == 0 && KC % BK == 0, "whole pairs of rows and whole blocks");

// MR rows over `blocks` blocks against `tokens` <= NR tokens, each product's sum in a register: the codes are
// unpacked once for all tokens and the activations loaded once for all rows. y [t][M_PAD] gains the products.
static inline __attribute__((always_inline)) void rows_times(const uint8_t *w, const uint8_t *x,
                                                             int32_t blocks, int tokens, int32_t *y) {
  __m512i acc[MR][NR] = {0};
  for (int32_t b = 0; b < blocks; b++, w += BM * VB, x += BK) {
    __m512i c[MR][4];
    for (int r = 0; r < MR; r++) {
      _mm_prefetch((const char *)w + r * VB + AHEAD, _MM_HINT_T0);
      decode(load(w + r * VB), c[r]);
    }
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
    case 7:
      rows_times(wr, x, blocks, 7, y + row);
      break;
    case 8:
      rows_times(wr, x, blocks, 8, y + row);
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

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)scratch;
  products(w, operand, n, y, p0, p1);
}

const bg_kernel bg_i2_s_gemm_m2560_k6912_bm4_bk256_nr8_kc2304__avx512vnni = {
    .symbol = "bg_i2_s_gemm_m2560_k6912_bm4_bk256_nr8_kc2304__avx512vnni",
    .m = M,
    .k = K,
    .m_pad = M_PAD,
    .panels = PANELS,
    .max_n = INT32_MAX,
    .weight_bytes = WEIGHT_BYTES,
    .operand_bytes = OPERAND_BYTES,
    .prepare = prepare,
    .run = run,
};
