// delta.c: the operations of Gated DeltaNet (Yang et al. 2024, "Gated Delta Networks: Improving Mamba2 with Delta
// Rule"); compiled once per ISA. See ops.h for the contracts.
//
// The recurrence is the definition, in prefill too, with one order of sums: so the bits of a sequence depend neither
// on how its tokens were divided nor on what ran beside it. A prefill keeps a slice, 8 KiB where a key has 128
// elements, in the nearest cache while all tokens of a chunk pass over it. That is three fused multiply-adds and a
// product for each number of the state, about what the chunked form would take: at 48 layers of 48 heads of 128 x 128
// 0.15 billion a token. Of a prefill of 1.6 billion weights with 9.4 million numbers of state it was 11%; with 25
// billion and 38 million, as in a model of 27 billion, it is so 3%.
#include "simd/ops.h"
#include "simd/vec.h"

_Static_assert((int)DELTA_COLUMNS == LANES, "a row of a slice is one vector");

static void convolve(const float *const *x, const float *w, size_t stride, int32_t taps, int32_t n,
                     float *y) {
  for (int32_t i = 0; i < n; i += LANES) {
    v16 sum = {0};
    for (int32_t tap = 0; tap < taps; tap++)
      sum = v16_fma(v16_load_part(x[tap] + i, n - i), v16_load_part(w + tap * stride + i, n - i), sum);
    v16_store_part(y + i, n - i, v16_silu(sum));
  }
}

static void unit(float *x, int32_t n, float scale) {
  v16 squares = {0};
  for (int32_t i = 0; i < n; i += LANES) {
    const v16 a = v16_load_part(x + i, n - i);
    squares = v16_fma(a, a, squares);
  }
  const v16 by = v16_set(scale / __builtin_sqrtf(v16_sum(squares) + 1e-6f));
  for (int32_t i = 0; i < n; i += LANES)
    v16_store_part(x + i, n - i, v16_load_part(x + i, n - i) * by);
}

static void rates(const float *a, const float *dt, int32_t n, float *decay, float *beta) {
  for (int32_t i = 0; i < n; i += LANES) {
    const v16 step = v16_softplus(v16_load(decay + i) + v16_load(dt + i));
    v16_store(decay + i, v16_exp(v16_load(a + i) * step));
    v16_store(beta + i, v16_sigmoid(v16_load(beta + i)));
  }
}

// Sums over the elements of a key go to four accumulators in turn, so that none waits for itself.
enum { SUMS = 4 };
VEC v16 in_order(const v16 sum[SUMS]) { return (sum[0] + sum[1]) + (sum[2] + sum[3]); }

// What the slice holds of a key: S k, a column each.
VEC v16 recall(const float *slice, const float *k, int32_t key_dim) {
  v16 sum[SUMS] = {{0}};
  int32_t i = 0;
  for (; i + SUMS <= key_dim; i += SUMS)
    for (int j = 0; j < SUMS; j++)
      sum[j] = v16_fma(v16_load(slice + (i + j) * LANES), v16_set(k[i + j]), sum[j]);
  for (int j = 0; i + j < key_dim; j++)
    sum[j] = v16_fma(v16_load(slice + (i + j) * LANES), v16_set(k[i + j]), sum[j]);
  return in_order(sum);
}

// A row of the slice: decay S + k d, which is written back.
VEC v16 updated(float *row, v16 decay, float k, v16 d) {
  const v16 s = v16_fma(v16_set(k), d, v16_load(row) * decay);
  v16_store(row, s);
  return s;
}

// S <- decay S + k d; the new S q.
VEC v16 update(float *slice, int32_t key_dim, const float *q, const float *k, v16 decay, v16 d) {
  v16 sum[SUMS] = {{0}};
  int32_t i = 0;
  for (; i + SUMS <= key_dim; i += SUMS)
    for (int j = 0; j < SUMS; j++)
      sum[j] = v16_fma(updated(slice + (i + j) * LANES, decay, k[i + j], d), v16_set(q[i + j]), sum[j]);
  for (int j = 0; i + j < key_dim; j++)
    sum[j] = v16_fma(updated(slice + (i + j) * LANES, decay, k[i + j], d), v16_set(q[i + j]), sum[j]);
  return in_order(sum);
}

static void pass_tokens(float *slice, int32_t key_dim, int32_t columns, const float *q, const float *k,
                        float *v, size_t row, const float *decay, const float *beta, size_t rate_row,
                        int32_t n) {
  for (int32_t t = 0; t < n; t++, q += row, k += row, v += row, decay += rate_row, beta += rate_row) {
    const v16 by = v16_set(*decay);
    const v16 off = v16_fma(-by, recall(slice, k, key_dim), v16_load_part(v, columns));
    v16_store_part(v, columns, update(slice, key_dim, q, k, by, off * v16_set(*beta)));
  }
}

const bg_delta_ops BG_FOR_ISA(bg_delta) = {
    .convolve = convolve,
    .unit = unit,
    .rates = rates,
    .pass_tokens = pass_tokens,
};
