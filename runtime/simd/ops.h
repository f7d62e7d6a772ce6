// ops.h: the float operations of a forward pass, compiled once per ISA from ops.c, attention*.c, delta.c and head.c.
//
// All of them give the same bits on every ISA (vec.h says how). "Padded" rows have a multiple of 16 elements
// in memory, zeros after the last; no other row is touched past its length. Nothing here allocates.
#ifndef BITGEN_OPS_H
#define BITGEN_OPS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernel.h"

#define BG_JOIN_(name, isa) name##__##isa
#define BG_JOIN(name, isa) BG_JOIN_(name, isa)
#define BG_FOR_ISA(name) BG_JOIN(name, BG_ISA) // bg_ops__avx2

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int32_t padded(int32_t n) { return (int32_t)round_up(n, 16); }

// Attention, in absolute blocks of positions: each block is a softmax of its own, and blocks are merged in
// order. So a token's result depends neither on how the tokens were batched nor on who computed which block.
//
// The cache of one kv head holds, up to a multiple of ATTEND_BLOCK positions, of halves or floats
//   k [position / 16][head_dim][16]       so that the scores of 16 positions are one vector
//   v [position][padded(head_dim)]
// and of int8, in the groups of G that the machine's instructions add up (2, with AMX 4), for every block of
// ATTEND_BLOCK positions
//   k [position / 16][head_dim / G][16][G], head_dim rounded up to G, then a float scale of each position
//   v [padded(head_dim) / 16][position / G][16][G], then a float scale of each position
// A position's row is nearly its codes times its scale, which is max |row| / 127 (attention_i8.c: round_row).
// A partial result, float [partial_floats], is sum p v of some positions, with p = exp(score - top); then
// top, the greatest score, and sum p.
enum { ATTEND_BLOCK = 256, MAX_HEAD_DIM = 1024, I8_GROUP = 4 }; // I8_GROUP: the greatest G
static inline size_t partial_floats(int32_t head_dim) { return (size_t)padded(head_dim) + 16; }

// To a place in a cache, or from it.
static inline void copy_cached(void *cached, uint8_t *row, size_t bytes, int in) {
  memcpy(in ? cached : row, in ? row : cached, bytes);
}

enum { READ_UNIT = 1 << 16 };

// <cdef>
// A certified head's codes, -127 to 127, plus 128 are 4 upper + lower. For each SCREEN_COLUMNS of a row, of
// column 64 c + j
//   upper  [128]  its bits 0 to 3, in byte 64 (c / 2) + j from bit 4 (c % 2) on
//           [64]  its bits 4 and 5, in byte j from bit 2 c on
//   lower   [64]  its bits 0 and 1, in byte j from bit 2 c on
enum bg_screen { SCREEN_COLUMNS = 256, SCREEN_UPPER = 192, SCREEN_LOWER = 64 };

typedef struct {
  size_t width, beside; // bytes of a cached number; of what is kept beside the numbers of a position
  // Write position `at` from k float [d], v float [d].
  void (*write)(const float *k, const float *v, int32_t d, int32_t at, void *kc, void *vc);
  // Copy position `at` out of the cache or, with `in`, into it. row: the numbers of k [d], of v [d], as they
  // are cached, then what is kept beside those of k and of v.
  void (*copy)(uint8_t *row, int in, int32_t d, int32_t at, void *kc, void *vc);
  // part[r] = partial result of query q[r] float [d] over positions first + begins[r] .. first + ends[r] - 1;
  // 0 <= begins[r] < ends[r], 1 <= ends[0] <= ends[1] ... <= ATTEND_BLOCK, first a multiple of ATTEND_BLOCK.
  // The block that is `ahead` blocks further on will be wanted next, and is asked for.
  void (*block)(const float *const *q, const int32_t *begins, const int32_t *ends, int32_t rows, int32_t d,
                float scale, const void *kc, const void *vc, int32_t first, int32_t ahead,
                float *const *part);
  void (*merge)(float *into, const float *part, int32_t d); // into = the partial result of both
  void (*finish)(const float *part, int32_t d, float *y);   // y float [d] = sum p v / sum p
} bg_attention_ops;

// The embedding and the output matrix: rows of floats in the type that holds exactly what the model's file has.
enum bg_dense_type { DENSE_F16, DENSE_BF16, DENSE_F32, DENSE_TYPES };

typedef struct {
  size_t width; // bytes of a number
  // x = row [n] times scale, n % 16 == 0
  void (*widen)(const void *row, int32_t n, float scale, float *x);
  // logits[i * stride + row] = w[row] . x[i] for rows row0 .. row1 - 1, n tokens; x float [n][k], k % 16 == 0
  void (*multiply)(const void *w, int32_t k, int32_t row0, int32_t row1, const float *x, int32_t n,
                   float *logits, size_t stride);
} bg_dense_ops;

typedef struct {
  // The same of an int8 matrix whose rows have scales.
  void (*i8)(const int8_t *w, const float *scales, int32_t k, int32_t row0, int32_t row1, const float *x,
             int32_t n, float *logits, size_t stride);
  // The rows of a certified head, whose codes are 4 upper + lower: sums[i * rows + row] = upper[row] . x[i],
  // and sums[i] = (4 upper + lower) . x[i] of one row. x[i] int8 [k] without -128; k a multiple of
  // SCREEN_COLUMNS, at most SCREENED
  void (*screen)(const uint8_t *upper, int32_t k, int32_t rows, const int8_t *const *x, int32_t n,
                 int32_t *sums);
  void (*refine)(const uint8_t *upper, const uint8_t *lower, int32_t k, const int8_t *const x[2],
                 int32_t sums[2]);
} bg_head_ops;

// What becomes of the rows of a product: of int32 sums, or of the floats of a kernel with groups, whose
// factors are not looked at.
typedef struct {
  void (*dequantise)(const int32_t *row, int32_t n, float f, float *y);      // y = row f
  void (*add_dequantised)(const int32_t *row, int32_t n, float f, float *x); // x += row f
  // y = act(gate fg) (up fu), act = relu(.)^2, silu, or gelu by its tanh formula; y padded
  void (*relu2)(const int32_t *gate, const int32_t *up, int32_t n, float fg, float fu, float *y);
  void (*silu)(const int32_t *gate, const int32_t *up, int32_t n, float fg, float fu, float *y);
  void (*gelu)(const int32_t *gate, const int32_t *up, int32_t n, float fg, float fu, float *y);
  // x = x sigmoid(row f), x = x silu(row f)
  void (*gate_sigmoid)(const int32_t *row, int32_t n, float f, float *x);
  void (*gate_silu)(const int32_t *row, int32_t n, float f, float *x);
} bg_row_ops;

// Gated DeltaNet. The state of a value head is cut into slices of DELTA_COLUMNS elements of a value, float
// [key_dim][DELTA_COLUMNS] each, zeros behind the last element.
enum bg_delta { DELTA_COLUMNS = 16 };

typedef struct {
  // y[i] = silu(sum over taps of w[tap * stride + i] x[tap][i]), i < n; x[0] is the oldest
  void (*convolve)(const float *const *x, const float *w, size_t stride, int32_t taps, int32_t n, float *y);
  void (*unit)(float *x, int32_t n, float scale); // x = x scale / sqrt(sum x^2 + 1e-6)
  // decay = exp(a softplus(decay + dt)), beta = sigmoid(beta); all [n], n % 16 == 0
  void (*rates)(const float *a, const float *dt, int32_t n, float *decay, float *beta);
  // n tokens pass over a slice: v <- the output, `columns` elements. Those of the next token are `row` further on
  // in q, k and v, and `rate_row` further on in decay and beta.
  void (*pass_tokens)(float *slice, int32_t key_dim, int32_t columns, const float *q, const float *k,
                      float *v, size_t row, const float *decay, const float *beta, size_t rate_row,
                      int32_t n);
} bg_delta_ops;

struct bg_ops {
  // y = g x / sqrt(mean(x^2) + eps); x, g, y padded; y may be x
  void (*rmsnorm)(const float *x, const float *g, int32_t n, float eps, float *y);
  // The same for each head of x float [heads][d], which is not padded, in place; g padded.
  void (*rmsnorm_heads)(float *x, int32_t heads, int32_t d, const float *g, float eps);
  // q int8 [n] = x s, rounded; returns s = 127 / max(1e-5, max|x|); x padded
  float (*quantise)(const float *x, int32_t n, int8_t *q);
  const bg_row_ops *sums, *floats;
  // Turn pair i of each head of x float [heads][d] by an angle of cosine c[i], sine s[i], i < n / 2: elements
  // (i, i + n / 2), or (2i, 2i + 1). Those from n on stay.
  void (*rope_halves)(float *x, int32_t heads, int32_t d, int32_t n, const float *c, const float *s);
  void (*rope_pairs)(float *x, int32_t heads, int32_t d, int32_t n, const float *c, const float *s);
  float (*greatest)(const float *x, int32_t n); // NaN does not count; -inf when there is no number
  // p = exp((x - top) / temperature), 0 where that is below e^-87
  void (*exp_row)(const float *x, int32_t n, float top, float temperature, float *p);
  uint64_t (*read)(const uint8_t *p, size_t bytes); // touches all of it; bytes a multiple of READ_UNIT
  const bg_attention_ops *attention_f16, *attention_f32, *attention_i8;
  const bg_dense_ops *dense; // [DENSE_TYPES]
  const bg_head_ops *head;
  const bg_delta_ops *delta;
  // x = H (s x) (inverse 0) or s (H x) (inverse 1) in blocks of float [block], a power of four; H is the
  // Sylvester-Walsh-Hadamard matrix over sqrt(block), s of 1 and -1, or NULL for 1; n % block == 0, x and s padded
  void (*hadamard)(float *x, const float *s, int32_t n, int32_t block, int inverse);
};
// </cdef>

enum { SCREENED = 1 << 16 }; // so many products of a code int32 can sum
#define UPPER_BYTES(columns) ((size_t)(columns) / SCREEN_COLUMNS * SCREEN_UPPER)
#define LOWER_BYTES(columns) ((size_t)(columns) / SCREEN_COLUMNS * SCREEN_LOWER)

#endif
