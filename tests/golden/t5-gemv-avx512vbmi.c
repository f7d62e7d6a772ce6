// bg_t5_gemv_m9_k512_bm5_bk256_pf2048__avx512vbmi
//
// gemv of W [9, 512] in layout t5_bm5_bk256 on avx512vbmi.
// Generated from templates/t5/avx512vbmi.c.j2 by:
//   bitgen gen bg_t5_gemv_m9_k512_bm5_bk256_pf2048__avx512vbmi

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { M = 9, K = 512, M_PAD = 10, K_PAD = 512 };
enum { BM = 5, BK = 256, PANELS = 2 };
enum { WEIGHT_BYTES = 1024, OPERAND_BYTES = 576 };
enum { PREFETCH = 2048 };
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

enum { NR = 1 };

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
    _mm_prefetch((const char *)w + PREFETCH, _MM_HINT_T0);
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

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)n, (void)scratch;
  for (int32_t p = p0; p < p1; p++) {
    for (int r = 0; r < ROWS; r++)
      y[p * ROWS + r] = -operand_sum(operand);
    micro_kernel(w + (size_t)p * PANEL_BYTES, operand + HEADER, BLOCKS, NR, y + p * ROWS);
  }
}

const bg_kernel bg_t5_gemv_m9_k512_bm5_bk256_pf2048__avx512vbmi = {
    .symbol = "bg_t5_gemv_m9_k512_bm5_bk256_pf2048__avx512vbmi",
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
