// ternary_head.c: embedding and head of ternary codes, a scale for every group of a row, at some two bits a weight.
//
// A logit is the product of the row's floats, scale times code, with the float state: what a float head that
// holds the same numbers gives, bit for bit. A choice needs few of them. The kernel that multiplies such matrices
// in the layers gives nearly all logits, of the state rounded to int8 by groups; an interval around each holds
// the logit, and only rows whose interval reaches the k-th greatest lower bound are unpacked and multiplied in
// full (certified_head.c).
//
// With w a row, h the state, x what the kernel reads in its place, a step times an integer in every group:
//   |logit - w.h|  <= gamma(hidden / 16 + 4) |w| |h|   sixteen lanes of fused multiply-adds, then a tree
//   |w.h - w.x|    <= |w| |h - x|                      Cauchy-Schwarz
//   |w.x - screen| <= gamma(groups + 2) |w| |x|        exact sums times (scale step), added group by group
// with gamma(n) = n u / (1 - n u), u = 2^-24 (Higham, Accuracy and Stability, section 3.1; a group's term is no
// greater than its sum of |w_i| |x_i|, and Cauchy-Schwarz again). The ends of the interval are rounded too, by
// less than 2^-23 (|w| |x| + radius). So the logit lies within
//   |w| reach + TINY,  reach = |h - x| + (hidden / 16 + groups + 32) 2^-23 (|h| + |x|),
// of the screen, where 2^-23 is twice what is needed. TINY is more than floats below the normal ones can add,
// which products with a small state may be: 2^-149 for each column. pack.py has stored |w|, rounded up.
#include "core/ternary_head.h"

#include <math.h>
#include <string.h>

#include "core/candidates.h"
#include "core/product.h"

enum { SPAN = 1024 };       // rows that are multiplied before their bounds are looked at
enum { BOUNDED_ROWS = 64 }; // whose bounds are looked at together
#define TINY 0x1p-100f

// ---- rows -----------------------------------------------------------------------------------------------

void embedding_row(const state *s, int32_t token, float *x) {
  const bg_model *m = s->model;
  const float scale = m->config.embedding_scale;
  if (m->ternary_embedding) {
    m->isa->gemv[BG_HEAD]->unpack_row(m->ternary_embedding, token, x);
    s->ops->dense[DENSE_F32].widen(x, s->hidden_row, scale, x);
  } else {
    const bg_dense_ops *ops = &s->ops->dense[m->embedding.type];
    ops->widen(m->embedding.rows + (size_t)token * s->hidden_row * ops->width, s->hidden_row, scale, x);
  }
}

void ternary_logits(const state *s, int32_t thread, int32_t row0, int32_t row1, const float *x, int32_t n,
                    float *logits, size_t stride) {
  const bg_model *m = s->model;
  const int32_t k = s->hidden_row;
  float *rows = s->choosing.rows + (size_t)thread * UNPACKED_ROWS * (size_t)k;
  for (int32_t row = row0; row < row1; row += UNPACKED_ROWS) {
    const int32_t count = row1 - row < UNPACKED_ROWS ? row1 - row : UNPACKED_ROWS;
    for (int32_t r = 0; r < count; r++)
      m->isa->gemv[BG_HEAD]->unpack_row(m->ternary_head, row + r, rows + (size_t)r * (size_t)k);
    s->ops->dense[DENSE_F32].multiply(rows, k, 0, count, x, n, logits + (row - row0), stride);
  }
}

// ---- the screen -----------------------------------------------------------------------------------------

static const bg_kernel *kernel_for(const state *s, int32_t n) {
  return n == 1 ? s->model->isa->gemv[BG_HEAD] : s->model->isa->gemm[BG_HEAD];
}

// |h - x|, rounded up
static float error_of(const bg_kernel *k, const float *h, const int8_t *q) {
  double error = 0;
  for (int32_t i = 0; i < k->k; i++) {
    float step;
    memcpy(&step, (const uint8_t *)q + k->k + (size_t)(i / k->group) * sizeof step, sizeof step);
    const double off = (double)h[i] - q[i] * (double)step;
    error += off * off;
  }
  return (float)(sqrt(error) * (1 + 0x1p-20));
}

float ternary_operand(const state *s, int32_t n, int32_t t, const float *h, float norm) {
  const bg_kernel *k = kernel_for(s, n);
  int8_t *q = s->choosing.quantised;
  quantise_groups(s->ops, k, h, q);
  k->pack_activations(q, 1, s->choosing.operand + (size_t)t * k->operand_bytes);
  const float error = error_of(k, h, q);
  const float gamma = (float)(k->k / 16 + k->k / k->group + 32) * 0x1p-23f;
  return (error + gamma * (2 * norm + error)) * (1 + 0x1p-20f); // |x| <= |h| + |h - x|
}

// Rows from `row` on, at most BOUNDED_ROWS, for one choice: y are the bits of their products.
static void bound_rows(const float *norms, float reach, int32_t row, int32_t rows, const int32_t *y,
                       candidates *c) {
  float middle[BOUNDED_ROWS], upper[BOUNDED_ROWS];
  int any = 0;
  if (c->n < 0)
    return;
  memcpy(middle, y, (size_t)rows * sizeof *middle);
  for (int32_t r = 0; r < rows; r++) {
    upper[r] = middle[r] + (norms[r] * reach + TINY);
    any |= !(upper[r] < c->threshold);
  }
  for (int32_t r = 0; any && r < rows && c->n >= 0; r++)
    if (!(upper[r] < c->threshold))
      candidates_add(c, row + r, middle[r] - (norms[r] * reach + TINY), upper[r]);
}

void ternary_screen_task(void *arg, int32_t thread, int32_t threads) {
  const ternary_screen *w = arg;
  const state *s = w->state;
  const bg_kernel *k = kernel_for(s, w->n);
  const int32_t bm = k->m_pad / k->panels, span = bm < SPAN ? SPAN / bm : 1;
  const int32_t vocab = s->model->config.vocab, end = range_begin(k->panels, thread + 1, threads);
  for (int32_t p = range_begin(k->panels, thread, threads), p_end; p < end; p = p_end) {
    p_end = end - p < span ? end : p + span;
    k->run(s->model->ternary_head, s->choosing.operand, w->n, s->choosing.screened, p, p_end,
           s->kernel_scratch + (size_t)thread * k->scratch_bytes);
    const int32_t row_end = p_end * bm < vocab ? p_end * bm : vocab;
    for (int32_t t = 0; t < w->n; t++) {
      const int32_t *y = s->choosing.screened + (size_t)t * (size_t)k->m_pad;
      for (int32_t row = p * bm; row < row_end; row += BOUNDED_ROWS)
        bound_rows(s->model->head_norms + row, w->reach[t], row,
                   row_end - row < BOUNDED_ROWS ? row_end - row : BOUNDED_ROWS, y + row,
                   candidates_of(s, thread, t));
    }
  }
}
