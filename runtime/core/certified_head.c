// certified_head.c: the greatest logits of the output matrix, exactly, at 3/8 of its bytes. It is maximum
// inner product search with a quantised bound: screen all rows, collect candidates, rescore them by the
// matrix's own floats.
//
// int8 codes of the matrix give every logit an interval that it cannot leave. Only rows whose interval
// reaches the k-th greatest lower bound are multiplied in full, and the sampler sees only those. What greedy
// and top-k sampling choose from them is what they would choose from all.
//
// A row w is kept as codes q and a scale s, the hidden state h is rounded to x step, x an integer.
// By Cauchy-Schwarz
//   |w.h - s step q.x| <= |w - s q| |h| + |s q| |h - x step|,
// and float arithmetic, here and in the full product, adds less than gamma (|w| + |s q|) |h| with
// gamma = (hidden / 16 + 32) 2^-23 (Higham, Accuracy and Stability, section 3.1), which pack.py has added to
// the residual |w - s q| that it stored.
//
// Both can be had in part. The upper six of a code's eight bits are codes of their own, with a residual of
// their own: they alone are read of all rows. And x has two digits, x = BASE high + low, both int8: high
// alone is a rounding of h too, with another step, for half the products. The interval is wider then; a row
// is left out as soon as k others lie above all of it, and of the few that stay all bits are multiplied by
// both digits at once.
//
// A head of ternary codes is screened as it is, by the kernel that multiplies it (ternary_head.c).
#include "core/certified_head.h"

#include <math.h>
#include <string.h>

#include "algorithms/search.h"
#include "core/candidates.h"
#include "core/ternary_head.h"

enum { SCREEN_ROWS = 64 };        // that are screened in one call
enum { FEW = 2 };                 // choices whose digits are both multiplied with all rows
enum { CENTRE = 128 };            // what codes are kept with
enum { DIGIT = 127, BASE = 255 }; // the greatest digit; what the high one counts
#define MOST_NORM 0x1p100f        // of a state, so that no bound is infinite

// A hidden state rounded to multiples of step.
typedef struct {
  float step;
  float error; // what rounding took, its norm rounded up
} rounding;

// One choice's final state as the screen reads it, and what the choice depends on.
typedef struct {
  const choice *choice;
  int32_t k;                // of the greatest lower bounds are tracked; 0: all logits are needed
  const float *h;           // [hidden_row] the final state
  const int8_t *high, *low; // [screen_row] its digits
  int32_t high_sum, low_sum;
  float norm;            // |h|, rounded up
  rounding coarse, fine; // by the high digit alone, by both
  int both_digits;       // are multiplied with all rows
  float margin;          // how far below the k-th lower bound a logit may still decide
  float reach;           // of a ternary head: ternary_operand
} query;

// The choices of one pass over the output matrix.
typedef struct {
  state *state;
  int32_t n;
  query queries[CHOICES];
  token_logits *found; // [n]
} search;

// ---- the screen -----------------------------------------------------------------------------------------

// Row `id` is a candidate where its interval, by all bits and both digits, reaches the threshold.
static void refine_row(const state *s, const query *q, int32_t id, candidates *c) {
  const bg_model *m = s->model;
  const int32_t k = s->choosing.screen_row;
  const int8_t *const digits[2] = {q->high, q->low};
  int32_t sums[2];
  s->ops->head->refine(m->head_upper + id * UPPER_BYTES(k), m->head_lower + id * LOWER_BYTES(k), k, digits,
                       sums);
  const int64_t product = (int64_t)BASE * (sums[0] - CENTRE * q->high_sum) + (sums[1] - CENTRE * q->low_sum);
  const float middle = (float)product * (m->head_scales[id] * q->fine.step);
  const float radius = m->head_residuals[id] * q->norm + m->head_norms[id] * q->fine.error;
  candidates_add(c, id, middle - radius, middle + radius);
}

// 4 upper + 3/2 - CENTRE is what upper bits say of a code: its product with a digit, exactly.
static double by_upper(int32_t sum, int32_t digits) { return 4.0 * sum - (CENTRE - 1.5) * digits; }

// upper[r] = the upper bound of row + r by the upper bits; whether any reaches the threshold (NaN does)
static int any_reaches(const bg_model *m, const query *q, int32_t row, int32_t rows, const int32_t *high,
                       const int32_t *low, float threshold, float *upper) {
  const float *scales = m->head_scales + row, *residuals = m->head_upper_residuals + row,
              *norms = m->head_norms + row;
  const rounding of = low ? q->fine : q->coarse;
  int any = 0;
  for (int32_t r = 0; r < rows; r++) {
    const double product = low ? BASE * by_upper(high[r], q->high_sum) + by_upper(low[r], q->low_sum)
                               : by_upper(high[r], q->high_sum);
    upper[r] = (float)product * (scales[r] * of.step) + (residuals[r] * q->norm + norms[r] * of.error);
    any |= !(upper[r] < threshold);
  }
  return any;
}

// Some rows for one query. low: NULL where only the high digit was multiplied.
static void screen_rows(const state *s, const query *q, int32_t row, int32_t rows, const int32_t *high,
                        const int32_t *low, candidates *c) {
  float upper[SCREEN_ROWS];
  if (c->n < 0 || !any_reaches(s->model, q, row, rows, high, low, c->threshold, upper))
    return;
  for (int32_t r = 0; r < rows && c->n >= 0; r++)
    if (!(upper[r] < c->threshold))
      refine_row(s, q, row + r, c);
}

// Each thread screens its rows for all queries.
static void screen_task(void *arg, int32_t thread, int32_t threads) {
  const search *w = arg;
  const state *s = w->state;
  const int32_t vocab = s->model->config.vocab, k = s->choosing.screen_row;
  const int32_t end = range_begin(vocab, thread + 1, threads);
  const int8_t *digits[2 * CHOICES];
  int32_t n = w->n, low_of[CHOICES], sums[2 * CHOICES * SCREEN_ROWS];
  for (int32_t t = 0; t < w->n; t++) {
    const query *q = &w->queries[t];
    digits[t] = q->high;
    low_of[t] = q->both_digits ? n : -1;
    if (q->both_digits)
      digits[n++] = q->low;
    candidates_clear(candidates_of(s, thread, t), q->k, q->margin);
  }
  for (int32_t row = range_begin(vocab, thread, threads); row < end; row += SCREEN_ROWS) {
    const int32_t rows = end - row < SCREEN_ROWS ? end - row : SCREEN_ROWS;
    s->ops->head->screen(s->model->head_upper + row * UPPER_BYTES(k), k, rows, digits, n, sums);
    for (int32_t t = 0; t < w->n; t++)
      screen_rows(s, &w->queries[t], row, rows, sums + t * rows,
                  low_of[t] < 0 ? NULL : sums + low_of[t] * rows, candidates_of(s, thread, t));
  }
}

// ---- queries --------------------------------------------------------------------------------------------

// |h - x step|, rounded up
static float error_of(const float *h, int32_t n, const int8_t *high, const int8_t *low, float step) {
  double error = 0;
  for (int32_t i = 0; i < n; i++) {
    const int32_t x = low ? BASE * high[i] + low[i] : high[i];
    const double off = (double)h[i] - x * (double)step;
    error += off * off;
  }
  return (float)(sqrt(error) * (1 + 0x1p-20));
}

// |h|, rounded up
static float norm_of(const float *h, int32_t n) {
  double norm = 0;
  for (int32_t i = 0; i < n; i++)
    norm += (double)h[i] * (double)h[i];
  return (float)(sqrt(norm) * (1 + 0x1p-20));
}

// Round h to two digits.
static void round_state(const float *h, int32_t n, int8_t *high, int8_t *low, query *q) {
  const int32_t most = BASE * DIGIT;
  float top = 0;
  for (int32_t i = 0; i < n; i++)
    top = fabsf(h[i]) > top ? fabsf(h[i]) : top;
  q->fine.step = top / (float)most;
  q->coarse.step = BASE * q->fine.step;
  for (int32_t i = 0; i < n; i++) {
    const float at = q->fine.step > 0 ? h[i] / q->fine.step : 0;
    const int32_t x = at < most ? at > -most ? (int32_t)lrintf(at) : -most : most;
    high[i] = (int8_t)((x + (x > 0 ? DIGIT : -DIGIT)) / BASE);
    low[i] = (int8_t)(x - BASE * high[i]);
    q->high_sum += high[i];
    q->low_sum += low[i];
  }
  q->coarse.error = error_of(h, n, high, NULL, q->coarse.step);
  q->fine.error = error_of(h, n, high, low, q->fine.step);
}

// Tokens at the end of a choice's history that a penalty may move: at most how many.
static int32_t penalised(const choice *c) {
  const bg_sampling *sampling = c->request->sampling;
  if (sampling->repeat_penalty == 1)
    return 0;
  return c->n_history < sampling->repeat_last ? c->n_history : sampling->repeat_last;
}

// How many of the greatest logits a choice depends on; 0: on all of them.
static int32_t top_k_of(const state *s, const choice *c) {
  const bg_sampling *sampling = c->request->sampling;
  const int32_t most = MAX_TOP_K < s->model->config.vocab ? MAX_TOP_K : 0;
  const int64_t k = (int64_t)(sampling->temperature == 0 ? 1 : sampling->top_k) + penalised(c);
  const int certified =
      s->model->ternary_head || (s->model->head_residuals && s->choosing.screen_row <= SCREENED);
  if (!certified || (sampling->temperature != 0 && !sampling->top_k))
    return 0;
  return k < most ? (int32_t)k : 0;
}

// The t-th of the n queries of a pass: choice i of the chunk.
static query query_for(const state *s, int32_t i, int32_t t, int32_t n) {
  const choice *c = &s->chunk.choices[i];
  const int32_t row = s->choosing.screen_row;
  int8_t *high = s->choosing.hidden_digits + (size_t)2 * t * row, *low = high + row;
  query q = {.choice = c,
             .k = top_k_of(s, c),
             .h = s->final_states + (size_t)i * s->hidden_row,
             .high = high,
             .low = low,
             .margin = 1e-4f * c->request->sampling->temperature};
  if (!q.k)
    return q;
  q.norm = norm_of(q.h, s->hidden_row);
  if (!(q.norm < MOST_NORM)) {
    q.k = 0;
    return q;
  }
  if (s->model->ternary_head) {
    q.reach = ternary_operand(s, n, t, q.h, q.norm);
    return q;
  }
  round_state(q.h, s->hidden_row, high, low, &q);
  // For few choices reading takes longer than multiplying; and too many rows may need the low digit.
  q.both_digits = s->chunk.n_states <= FEW || q.coarse.error > q.norm * (1.0f / 32);
  return q;
}

// ---- decisive logits ------------------------------------------------------------------------------------

// Add to n rising ids the tokens that a penalty may move, wherever their intervals lie. -1: there is no room.
static int32_t add_penalised(const state *s, const query *q, int32_t *ids, int32_t n) {
  const int32_t recent = penalised(q->choice);
  const int32_t *history = q->choice->request->history + q->choice->n_history - recent;
  for (int32_t i = 0; i < recent; i++) {
    int32_t at;
    if (SEARCH(at, 0, n, (int64_t)ids[at] - history[i]) || history[i] < 0 ||
        history[i] >= s->model->config.vocab)
      continue; // the sampler refuses what is no token
    if (n == MAX_CANDIDATES)
      return -1;
    memmove(ids + at + 1, ids + at, (size_t)(n - at) * sizeof *ids);
    ids[at] = history[i];
    n++;
  }
  return n;
}

// ids = the candidates of the t-th query and the tokens that a penalty may move, rising; their number, or -1: too
// many. A candidate may lie a little below the k-th lower bound: the sampler ranks probabilities, and two logits
// this close may have the same.
static int32_t rescored_ids(const state *s, const query *q, int32_t t, int32_t *ids) {
  int32_t n = candidates_merge(s, t, ids);
  if (n >= 0)
    n = add_penalised(s, q, ids, n);
  return n <= s->model->config.vocab / 8 ? n : -1;
}

// Each thread computes the logits of its range of every query's candidates.
static void rescore_task(void *arg, int32_t thread, int32_t threads) {
  const search *w = arg;
  const state *s = w->state;
  for (int32_t t = 0; t < w->n; t++) {
    const token_logits *of = &w->found[t];
    float *logits = s->choosing.candidate_logits + (size_t)t * MAX_CANDIDATES;
    const int32_t end = of->ids ? range_begin(of->n, thread + 1, threads) : 0;
    for (int32_t i = range_begin(of->n, thread, threads); i < end; i++)
      logits[i] = output_logit(s, thread, of->ids[i], w->queries[t].h);
  }
}

// The candidates of every query.
static void screen(search *w) {
  state *s = w->state;
  if (!s->model->ternary_head) {
    pool_run(s->pool, screen_task, w);
    return;
  }
  ternary_screen of = {.state = s, .n = w->n};
  for (int32_t t = 0; t < w->n; t++) {
    const query *q = &w->queries[t];
    of.reach[t] = q->reach;
    for (int32_t thread = 0; thread < pool_threads(s->pool); thread++)
      candidates_clear(candidates_of(s, thread, t), q->k, q->margin);
  }
  pool_run(s->pool, ternary_screen_task, &of);
}

// Logits of the candidates where they are few enough, of all tokens otherwise.
static void search_candidates(search *w) {
  state *s = w->state;
  choosing *c = &s->choosing;
  const int32_t vocab = s->model->config.vocab;
  screen(w);
  for (int32_t t = 0; t < w->n; t++) {
    const query *q = &w->queries[t];
    int32_t *ids = c->candidate_ids + (size_t)t * MAX_CANDIDATES;
    const int32_t n = rescored_ids(s, q, t, ids);
    if (n >= 0) {
      w->found[t] = (token_logits){c->candidate_logits + (size_t)t * MAX_CANDIDATES, ids, n};
    } else {
      float *logits = c->all_logits + (size_t)t * vocab;
      output_logits(s, q->h, 1, logits);
      w->found[t] = (token_logits){logits, NULL, vocab};
    }
    c->rescored += w->found[t].n;
  }
  pool_run(s->pool, rescore_task, w);
}

// The final states of a pass lie one behind the other.
static void compute_all(search *w) {
  choosing *c = &w->state->choosing;
  const int32_t vocab = w->state->model->config.vocab;
  output_logits(w->state, w->queries[0].h, w->n, c->all_logits);
  for (int32_t t = 0; t < w->n; t++)
    w->found[t] = (token_logits){c->all_logits + (size_t)t * vocab, NULL, vocab};
  c->rescored += (int64_t)w->n * vocab;
}

void decisive_logits(state *s, int32_t first, int32_t n, token_logits *found) {
  search w = {.state = s, .n = n, .found = found};
  int all = 0;
  for (int32_t t = 0; t < n; t++) {
    w.queries[t] = query_for(s, first + t, t, n);
    all |= !w.queries[t].k;
  }
  if (all)
    compute_all(&w);
  else
    search_candidates(&w);
}
