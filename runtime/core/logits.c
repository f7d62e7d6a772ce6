// logits.c: the product with the output matrix; threads divide its rows.
#include "core/logits.h"

#include "core/ternary_head.h"

typedef struct {
  const state *state;
  const float *x; // [n][hidden_row]
  int32_t n;
  float *logits; // [n][vocab]
} output_work;

static void output_task(void *arg, int32_t thread, int32_t threads) {
  const output_work *w = arg;
  const state *s = w->state;
  const bg_model *m = s->model;
  const int32_t vocab = m->config.vocab, k = s->hidden_row;
  const int32_t row0 = range_begin(vocab, thread, threads), row1 = range_begin(vocab, thread + 1, threads);
  if (m->ternary_head)
    ternary_logits(s, thread, row0, row1, w->x, w->n, w->logits + row0, (size_t)vocab);
  else if (m->output.rows)
    s->ops->dense[m->output.type].multiply(m->output.rows, k, row0, row1, w->x, w->n, w->logits,
                                           (size_t)vocab);
  else
    s->ops->head->i8(m->head_i8, m->head_scales, k, row0, row1, w->x, w->n, w->logits, (size_t)vocab);
}

void output_logits(state *s, const float *x, int32_t n, float *logits) {
  output_work w = {s, x, n, logits};
  pool_run(s->pool, output_task, &w);
}

float output_logit(const state *s, int32_t thread, int32_t row, const float *x) {
  const bg_dense *rows = &s->model->output;
  const bg_dense_ops *ops = &s->ops->dense[rows->type];
  const int32_t k = s->hidden_row;
  float logit;
  if (s->model->ternary_head)
    ternary_logits(s, thread, row, row + 1, x, 1, &logit, 0);
  else
    ops->multiply(rows->rows + (size_t)row * (size_t)k * ops->width, k, 0, 1, x, 1, &logit, 0);
  return logit;
}
