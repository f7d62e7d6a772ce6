// choose.c: the output matrix, all of it or as much as a choice needs.
//
// The certified head: an int8 copy of the matrix, half the bytes, gives every logit an interval that it
// cannot leave. Only rows whose interval reaches the k-th greatest lower end are computed in float16; the
// other tokens get -inf. What greedy and top-k sampling choose from those logits is what they would choose
// from all.
//
// A row w is kept as codes q and a scale s, the hidden state h is rounded to x step, x int16. By
// Cauchy-Schwarz
//   |w.h - s step q.x| <= |w - s q| |h| + |s q| |h - x step|,
// and float arithmetic, here and in the float16 product, adds less than gamma (|w| + |s q|) |h| with
// gamma = (hidden / 16 + 32) 2^-23 (Higham, Accuracy and Stability, section 3.1), which pack.py has added to
// the residual |w - s q| that it stored.
#include <math.h>
#include <string.h>

#include "fpstate.h"
#include "session.h"

enum { BLOCK = 16 }; // rows that stay in the first-level cache for all tokens

// ---- all logits -------------------------------------------------------------------------------------------

typedef struct {
  const state *state;
  const float *x; // [n][hidden_row]
  int32_t n;
  float *logits; // [n][vocab]
} output_work;

static void output_share(void *arg, int32_t thread, int32_t threads) {
  const output_work *w = arg;
  const state *s = w->state;
  const bg_model *m = s->model;
  const int32_t row0 = share(m->config.vocab, thread, threads),
                row1 = share(m->config.vocab, thread + 1, threads);
  const size_t stride = (size_t)m->config.vocab;
  if (m->head_f16)
    s->ops->head->f16(m->head_f16, s->hidden_row, row0, row1, w->x, w->n, w->logits, stride);
  else
    s->ops->head->i8(m->head_i8, m->head_scales, s->hidden_row, row0, row1, w->x, w->n, w->logits, stride);
}

void output_logits(state *s, const float *x, int32_t n, float *logits) {
  output_work w = {s, x, n, logits};
  pool_run(s->pool, output_share, &w);
}

// ---- the certified head -----------------------------------------------------------------------------------

// One token's hidden state as the screen reads it, and how it asks.
typedef struct {
  float step;
  float norm;  // |h|, rounded up
  float error; // |h - x step|, rounded up
  int32_t k;   // how many of the greatest lower ends are kept
} query;

typedef struct {
  state *state;
  int32_t n;
  query queries[CHOICES];
} screen_work;

// Keep the k greatest values: heap[0] is the least of them.
static void keep(float *heap, int32_t k, float value) {
  int32_t at = 0;
  if (value <= heap[0])
    return;
  for (int32_t child; (child = 2 * at + 1) < k; at = child) {
    if (child + 1 < k && heap[child + 1] < heap[child])
      child++;
    if (value <= heap[child])
      break;
    heap[at] = heap[child];
  }
  heap[at] = value;
}

static float *heap_of(const state *s, int32_t thread, int32_t t) {
  return s->heaps + ((size_t)thread * CHOICES + t) * MOST_KEPT;
}

// choices[t][row] = the upper end of each logit; the heaps gather the lower ends
static void screen_share(void *arg, int32_t thread, int32_t threads) {
  const screen_work *w = arg;
  state *s = w->state;
  const bg_model *m = s->model;
  const int32_t end = share(m->config.vocab, thread + 1, threads), k = s->hidden_row;
  for (int32_t t = 0; t < w->n; t++)
    for (int32_t i = 0; i < w->queries[t].k; i++)
      heap_of(s, thread, t)[i] = -INFINITY;
  for (int32_t row = share(m->config.vocab, thread, threads); row < end; row += BLOCK) {
    const int32_t rows = end - row < BLOCK ? end - row : BLOCK;
    int32_t sums[CHOICES * BLOCK];
    s->ops->head->screen(m->head_i8 + (size_t)row * k, k, rows, s->screened, w->n, sums);
    for (int32_t t = 0; t < w->n; t++) {
      const query *q = &w->queries[t];
      for (int32_t r = 0; r < rows; r++) {
        const int32_t id = row + r;
        const float middle = (float)sums[t * rows + r] * (m->head_scales[id] * q->step);
        const float radius = m->head_residuals[id] * q->norm + m->head_norms[id] * q->error;
        s->choices[(size_t)t * m->config.vocab + id] = middle + radius;
        keep(heap_of(s, thread, t), q->k, middle - radius);
      }
    }
  }
}

// x int16 [hidden_row] and its query; |x| is small enough for any sum of products with int8 to fit int32.
static query ask(const state *s, const float *h, int32_t k, int16_t *x) {
  const int32_t n = s->hidden_row, fits = INT32_MAX / 127 / n, most = fits < INT16_MAX ? fits : INT16_MAX;
  double norm = 0, error = 0;
  float top = 0;
  for (int32_t i = 0; i < n; i++)
    top = fabsf(h[i]) > top ? fabsf(h[i]) : top;
  const float step = top / (float)most;
  for (int32_t i = 0; i < n; i++) {
    x[i] = step > 0 && top < INFINITY ? (int16_t)lrintf(h[i] / step) : 0;
    const double off = (double)h[i] - (double)x[i] * (double)step;
    norm += (double)h[i] * (double)h[i];
    error += off * off;
  }
  const double up = 1 + 0x1p-20;
  return (query){step, (float)(sqrt(norm) * up), (float)(sqrt(error) * up), k};
}

typedef struct {
  const state *state;
  const float *x;
  const int32_t *ids;
  int32_t n;
  float *logits;
} rescore_work;

static void rescore_share(void *arg, int32_t thread, int32_t threads) {
  const rescore_work *w = arg;
  const state *s = w->state;
  for (int32_t i = share(w->n, thread, threads); i < share(w->n, thread + 1, threads); i++)
    s->ops->head->f16(s->model->head_f16, s->hidden_row, w->ids[i], w->ids[i] + 1, w->x, 1, w->logits, 0);
}

// Ids among the last tokens of the history that a penalty may move: at most how many.
static int32_t penalised(const bg_sampling *how, int32_t history) {
  return how->repeat_penalty == 1 ? 0 : history < how->repeat_last ? history : how->repeat_last;
}

// How many of the greatest logits the choice depends on; 0: on all of them.
static int32_t depends_on(const state *s, const bg_sampling *how, int32_t history) {
  const int32_t moved = penalised(how, history), most = MOST_KEPT < s->model->config.vocab ? MOST_KEPT : 0;
  const int64_t k = (int64_t)(how->temperature == 0 ? 1 : how->top_k) + moved;
  return s->model->head_residuals && (how->temperature == 0 || how->top_k) && k < most ? (int32_t)k : 0;
}

// Turn the upper ends in logits [vocab] into logits. A survivor may lie a little below the k-th lower end:
// the sampler ranks probabilities, and two logits this close may have the same. Too many survivors: all.
static void settle(state *s, const bg_sampling *how, const query *q, int32_t t, const float *x,
                   const int32_t *moved, int32_t n_moved) {
  const int32_t vocab = s->model->config.vocab, threads = pool_threads(s->pool);
  float *logits = s->choices + (size_t)t * vocab, *heap = heap_of(s, 0, t);
  for (int32_t thread = 1; thread < threads; thread++)
    for (int32_t i = 0; i < q->k; i++)
      keep(heap, q->k, heap_of(s, thread, t)[i]);
  const float least = heap[0] - 1e-4f * how->temperature;
  for (int32_t i = 0; i < n_moved; i++)
    if (moved[i] >= 0 && moved[i] < vocab)
      logits[moved[i]] = INFINITY;
  int32_t *ids = (int32_t *)s->order, n = 0;
  for (int32_t id = 0; id < vocab; id++)
    if (!(logits[id] < least)) // what is not a number survives
      ids[n++] = id;
  if (n > vocab / 8 || !(least > -INFINITY && q->norm < INFINITY)) {
    output_logits(s, x, 1, logits);
    s->rescored += vocab;
    return;
  }
  for (int32_t id = 0; id < vocab; id++)
    logits[id] = -INFINITY;
  rescore_work w = {s, x, ids, n, logits};
  pool_run(s->pool, rescore_share, &w);
  s->rescored += n;
}

// choices [n][vocab] = logits that decide for n <= CHOICES tokens, whose histories end at `ends[t]`.
static void decisive_logits(state *s, const bg_sampling *how, const float *x, int32_t n,
                            const int32_t *history, const int32_t *ends) {
  screen_work w = {s, n, {{0}}};
  for (int32_t t = 0; t < n; t++) {
    const int32_t k = depends_on(s, how, ends[t]);
    if (!k) {
      output_logits(s, x, n, s->choices);
      s->rescored += (int64_t)n * s->model->config.vocab;
      return;
    }
    w.queries[t] = ask(s, x + (size_t)t * s->hidden_row, k, s->screened + (size_t)t * s->hidden_row);
  }
  pool_run(s->pool, screen_share, &w);
  for (int32_t t = 0; t < n; t++) {
    const int32_t moved = penalised(how, ends[t]);
    settle(s, how, &w.queries[t], t, x + (size_t)t * s->hidden_row, history + ends[t] - moved, moved);
  }
}

int32_t bg_next(bg_session *session, const int32_t *tokens, int32_t n, const bg_sampling *how,
                const int32_t *history, int32_t n_history, uint64_t step, int32_t *chosen, int32_t count) {
  if (!session || !how || !history || !chosen || count < 1 || count > n || count > CHUNK || n_history < count)
    return BG_E_ARGUMENT;
  state *s = session->state;
  int32_t code = append(&session, 1, tokens, &n, NULL, NULL, count);
  const uint64_t callers = fp_default();
  for (int32_t done = 0; code == BG_OK && done < count; done += CHOICES) {
    const int32_t some = count - done < CHOICES ? count - done : CHOICES;
    int32_t ends[CHOICES];
    for (int32_t t = 0; t < some; t++)
      ends[t] = n_history - count + 1 + done + t;
    decisive_logits(s, how, s->h + (size_t)done * s->hidden_row, some, history, ends);
    for (int32_t t = 0; code >= 0 && t < some; t++) {
      const float *logits = s->choices + (size_t)t * s->model->config.vocab;
      code = bg_sample(session, how, logits, history, ends[t], step + (uint64_t)(done + t));
      chosen[done + t] = code;
    }
    lap(s, BG_STEP_HEAD);
    code = code < 0 ? code : BG_OK;
  }
  fp_set(callers);
  return code;
}

int64_t bg_rescored(const bg_session *session) { return session ? session->state->rescored : BG_E_ARGUMENT; }
