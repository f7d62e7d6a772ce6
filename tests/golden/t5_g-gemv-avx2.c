// bg_t5_g_gemv_m159_k128_s64_bm80_bk64_pf2048__avx2
//
// gemv of W [159, 128] in layout t5_g_bm80_bk64 on avx2.
// Generated from templates/t5_g/avx2.c.j2 by:
//   bitgen gen bg_t5_g_gemv_m159_k128_s64_bm80_bk64_pf2048__avx2

#include <immintrin.h>
#include <string.h>

#include "kernel.h"

enum { ROWS = 8 }; // lanes of a vector
enum { M = 159, K = 128, M_PAD = 160, K_PAD = 128 };
enum { BM = 80, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 4736, OPERAND_BYTES = 192 };
enum { PREFETCH = 2048 };
_Static_assert(M_PAD == PANELS * BM && M <= M_PAD && K <= K_PAD, "whole panels and blocks cover the matrix");

// A byte holds one column of five rows, which stand APART rows apart; a vector holds four columns of ROWS
// times five rows, and a lane the four bytes of five.
enum { GROUP = BK, GROUPS = K / GROUP, STEP = 16, FIVE = 5, APART = BM / FIVE };
enum { VB = 4 * ROWS, VECTORS = APART / ROWS };
enum { SCALES = BM * 2, GROUP_BYTES = SCALES + APART * GROUP, PANEL_BYTES = GROUPS * GROUP_BYTES };
_Static_assert(K == K_PAD && GROUP % STEP == 0, "whole groups of whole steps");
_Static_assert(BM == FIVE * VECTORS * ROWS, "whole vectors of fives");

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

// Sums of the five rows of each lane, by those of the parts. Bits are those of integers modulo 2^32, where 9
// has an inverse.
static inline void solve(const ints s[PARTS], ints rows[FIVE]) {
  typedef uint32_t words __attribute__((vector_size(4 * ROWS)));
  rows[0] = s[FIRST];
  rows[1] = s[PAIR] - 3 * s[FIRST];
  rows[2] = (ints)((words)(s[REST] - s[LOW]) * 954437177);
  rows[3] = s[FOURTH];
  rows[4] = s[LOW] - 3 * s[FOURTH];
}

// Partial sums are int16. A lane gains 2 products of a part and an activation -128..127 from each vector. REST
// is 0..26 and is widened after every step of four vectors; the others, 0..8, after SPAN columns.
typedef __m256i vector, narrow;
enum { SPAN = 64 };
_Static_assert(STEP / 4 * 2 * 26 * 128 <= 32768, "int16 sums over a step are exact");
_Static_assert(SPAN / 4 * 2 * 8 * 128 <= 32768, "and those of smaller parts over SPAN columns");

static inline __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

// A third of the bytes 0..8.
static inline __m256i third(__m256i v) {
  const __m128i table = _mm_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0);
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), v);
}

// v mod 9 of bytes below 27: where v is less than 9, v - 9 wraps around to more.
static inline __m256i mod9(__m256i v) {
  const __m256i nine = _mm256_set1_epi8(9);
  v = _mm256_min_epu8(v, _mm256_sub_epi8(v, nine));
  return _mm256_min_epu8(v, _mm256_sub_epi8(v, nine));
}

static inline void decode(const uint8_t *w, __m256i u[PARTS]) {
  const __m256i v = load(w), eight = _mm256_set1_epi8(8);
  const __m256i eighth = _mm256_and_si256(_mm256_srli_epi16(v, 3), _mm256_set1_epi8(31));
  u[REST] = _mm256_min_epu8(eighth, _mm256_sub_epi8(v, _mm256_set1_epi8((char)216)));
  u[PAIR] = _mm256_subs_epu8(eight, _mm256_sub_epi8(v, _mm256_slli_epi16(u[REST], 3)));
  u[FIRST] = third(u[PAIR]);
  u[LOW] = mod9(u[REST]);
  u[FOURTH] = third(u[LOW]);
}

static inline vector broadcast(const uint8_t *q) {
  int32_t four;
  memcpy(&four, q, sizeof four);
  return _mm256_set1_epi32(four);
}

static inline narrow multiply_add(narrow acc, vector u, vector x) {
  return _mm256_add_epi16(acc, _mm256_maddubs_epi16(u, x));
}

static inline ints widen_add(ints total, narrow acc) {
  return (ints)_mm256_add_epi32((__m256i)total, _mm256_madd_epi16(acc, _mm256_set1_epi16(1)));
}

static inline floats widen(const uint8_t *halves) {
  return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
}

// One vector of rows over a group of columns: four columns of a lane's parts are multiplied with the same four
// activations.
static inline __attribute__((always_inline)) void add_group(ints total[PARTS], const uint8_t *w,
                                                            const uint8_t *q) {
  for (int32_t i = 0, end; i < GROUP; i = end) {
    narrow acc[PARTS] = {0};
    for (end = GROUP - i < SPAN ? GROUP : i + SPAN; i < end; i += STEP) {
#pragma clang loop unroll(full)
      for (int quarter = 0; quarter < 4; quarter++, w += VECTORS * VB, q += 4) {
        if (quarter * VECTORS * VB % 64 == 0) // a cache line
          __builtin_prefetch(w + PREFETCH);
        vector u[PARTS];
        decode(w, u);
        const vector x = broadcast(q);
#pragma clang loop unroll(full)
        for (int part = 0; part < PARTS; part++)
          acc[part] = multiply_add(acc[part], u[part], x);
      }
      total[REST] = widen_add(total[REST], acc[REST]);
      acc[REST] = (narrow){0};
    }
#pragma clang loop unroll(full)
    for (int part = 0; part < PARTS; part++)
      total[part] = widen_add(total[part], acc[part]);
  }
}

// A panel's rows. A group is its scales, then its codes. Within a group sums are exact; then, in float,
//   total = total + sum * (scale * step)
// with the row's scale and the token's step, group by group, each operation rounded: in every kernel alike.
static inline __attribute__((always_inline)) void micro_kernel(const uint8_t *w, const uint8_t *x,
                                                               int32_t *y) {
  floats total[VECTORS][FIVE] = {0};
  for (int32_t g = 0; g < GROUPS; g++, w += GROUP_BYTES) {
    float step;
    int32_t sum;
    memcpy(&step, x + g * 4, sizeof step);
    memcpy(&sum, x + (GROUPS + g) * 4, sizeof sum);
    for (int v = 0; v < VECTORS; v++) {
      ints acc[PARTS] = {0}, sums[FIVE];
      add_group(acc, w + SCALES + v * VB, x + HEADER + g * GROUP);
      solve(acc, sums);
#pragma clang loop unroll(full)
      for (int i = 0; i < FIVE; i++) {
        const floats scale = widen(w + (i * APART + v * ROWS) * 2);
        total[v][i] += __builtin_convertvector(sums[i] - sum, floats) * (scale * step);
      }
    }
  }
  for (int v = 0; v < VECTORS; v++)
    for (int i = 0; i < FIVE; i++)
      memcpy(y + i * APART + v * ROWS, &total[v][i], sizeof(floats));
}

static void run(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                void *scratch) {
  (void)n, (void)scratch;
  for (int32_t p = p0; p < p1; p++)
    micro_kernel(w + (size_t)p * PANEL_BYTES, operand, y + p * BM);
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

const bg_kernel bg_t5_g_gemv_m159_k128_s64_bm80_bk64_pf2048__avx2 = {
    .symbol = "bg_t5_g_gemv_m159_k128_s64_bm80_bk64_pf2048__avx2",
    .m = M,
    .k = K,
    .group = GROUP,
    .m_pad = M_PAD,
    .panels = PANELS,
    .max_n = 1,
    .weight_bytes = WEIGHT_BYTES,
    .operand_bytes = OPERAND_BYTES,
    .pack_activations = pack_activations,
    .run = run,
    .unpack_row = unpack_row,
};
