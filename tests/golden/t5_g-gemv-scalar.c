// bg_t5_g_gemv_m39_k128_s64_bm20_bk64__scalar
//
// gemv of W [39, 128] in layout t5_g_bm20_bk64 on scalar.
// Generated from templates/t5_g/scalar.c.j2 by:
//   bitgen gen bg_t5_g_gemv_m39_k128_s64_bm20_bk64__scalar

#include <string.h>

#include "kernel.h"

enum { ROWS = 4 }; // lanes of a vector
enum { M = 39, K = 128, M_PAD = 40, K_PAD = 128 };
enum { BM = 20, BK = 64, PANELS = 2 };
enum { WEIGHT_BYTES = 1216, OPERAND_BYTES = 192 };
enum { PREFETCH = 0 };
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

typedef struct {
  uint8_t at[VB];
} vector;

static inline void decode_parts(const uint8_t *w, vector u[PARTS]) {
  for (int j = 0; j < VB; j++) {
    const uint8_t pair = w[j] < 216 ? 8 - (w[j] & 7) : 0, rest = w[j] < 216 ? w[j] >> 3 : w[j] - 216;
    u[PAIR].at[j] = pair;
    u[FIRST].at[j] = pair / 3;
    u[REST].at[j] = rest;
    u[LOW].at[j] = rest % 9;
    u[FOURTH].at[j] = rest % 9 / 3;
  }
}

static inline vector broadcast(const uint8_t *q) {
  vector v;
  for (int j = 0; j < VB; j++)
    v.at[j] = q[j % 4];
  return v;
}

static inline ints multiply_add(ints acc, vector u, vector x) {
  for (int j = 0; j < VB; j++)
    acc[j / 4] += u.at[j] * (int8_t)x.at[j];
  return acc;
}

// Exponent and fraction of a half in a float's place, rebased from 15 to 127 by an exact product.
static inline floats widen(const uint8_t *halves) {
  floats v;
  for (int r = 0; r < ROWS; r++) {
    const uint32_t bits = (uint32_t)(halves[2 * r] | halves[2 * r + 1] << 8) << 13;
    float a;
    memcpy(&a, &bits, sizeof a);
    v[r] = a * 0x1p112f;
  }
  return v;
}

// One vector of rows over a group of columns: four columns of a lane's parts are multiplied with the same four
// activations.
static inline __attribute__((always_inline)) void add_group(ints acc[PARTS], const uint8_t *w,
                                                            const uint8_t *q) {
  for (int32_t i = 0; i < GROUP; i += STEP) {
#pragma clang loop unroll(full)
    for (int quarter = 0; quarter < 4; quarter++, w += VECTORS * VB, q += 4) {
      vector u[PARTS];
      decode_parts(w, u);
      const vector x = broadcast(q);
#pragma clang loop unroll(full)
      for (int part = 0; part < PARTS; part++)
        acc[part] = multiply_add(acc[part], u[part], x);
    }
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

const bg_kernel bg_t5_g_gemv_m39_k128_s64_bm20_bk64__scalar = {
    .symbol = "bg_t5_g_gemv_m39_k128_s64_bm20_bk64__scalar",
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
