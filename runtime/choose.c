// choose.c: the output matrix, all of it or as much as a choice needs.
//
// The certified head: int8 codes of the matrix give every logit an interval that it cannot leave. Only rows
// whose interval reaches the k-th greatest lower end are computed in float16, and the sampler sees only
// those. What greedy and top-k sampling choose from them is what they would choose from all.
//
// A row w is kept as codes q and a scale s, the hidden state h is rounded to x step, x an integer.
// By Cauchy-Schwarz
//   |w.h - s step q.x| <= |w - s q| |h| + |s q| |h - x step|,
// and float arithmetic, here and in the float16 product, adds less than gamma (|w| + |s q|) |h| with
// gamma = (hidden / 16 + 32) 2^-23 (Higham, Accuracy and Stability, section 3.1), which pack.py has added to
// the residual |w - s q| that it stored.
//
// Both can be had in part. The upper six of a code's eight bits are codes of their own, with a residual of
// their own: they alone are read of all rows. And x has two digits, x = BASE high + low, both int8: high
// alone is a rounding of h too, with another step, for half the products. The interval is wider then; a row
// is left out as soon as k others lie above all of it, and of the few that stay all bits are multiplied by
// both digits at once.
#include <math.h>
#include <string.h>

#include "fpstate.h"
#include "session.h"

enum { BLOCK = 64 };              // rows that are screened in one call
enum { FEW = 2 };                 // tokens whose digits are both multiplied with all rows
enum { CENTRE = 128 };            // what codes are kept with
enum { DIGIT = 127, BASE = 255 }; // the greatest digit; what the high one counts

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

// A hidden state rounded to multiples of step.
typedef struct {
  float step;
  float error; // what rounding took, its norm rounded up
} rounding;

// One token's hidden state as the screen reads it, and how it asks.
typedef struct {
  const bg_choice *ask;
  int32_t history;          // tokens of it that the choice sees
  int32_t k;                // how many of the greatest lower ends are kept; 0: all logits are needed
  const float *h;           // [hidden_row]
  const int8_t *high, *low; // [screen_row] its digits
  int32_t high_sum, low_sum;
  float norm;            // |h|, rounded up
  rounding coarse, fine; // by the high digit alone, by both
  int both;              // both digits are multiplied with all rows
  float slack;           // how far below the k-th lower end a logit may still decide
  options found;         // what is chosen from
} query;

typedef struct {
  state *state;
  int32_t n;
  query queries[CHOICES];
} choosing;

// Keep the k greatest values: heap[0] is the least of them.
static void keep(float *heap, int32_t k, float value) {
  int32_t at = 0;
  if (!(value > heap[0]))
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

static net *net_of(const state *s, int32_t thread, int32_t t) {
  return s->nets + (size_t)thread * CHOICES + t;
}

// Let go what does not reach the bar any more; a net that stays nearly full is given up.
static void thin_out(net *of) {
  int32_t n = 0;
  for (int32_t i = 0; i < of->n; i++)
    if (!(of->upper[i] < of->bar)) {
      of->upper[n] = of->upper[i];
      of->ids[n++] = of->ids[i];
    }
  of->n = n > MOST_CAUGHT / 4 * 3 ? -1 : n;
}

// The interval of row `id` by all bits and both digits.
static void consider(const state *s, const query *q, int32_t id, net *of) {
  const bg_model *m = s->model;
  const int8_t *const digits[2] = {q->high, q->low};
  int32_t sums[2];
  s->ops->head->refine(m->head_upper + id * UPPER_BYTES(s->screen_row),
                       m->head_lower + id * LOWER_BYTES(s->screen_row), s->screen_row, digits, sums);
  const int64_t product = (int64_t)BASE * (sums[0] - CENTRE * q->high_sum) + (sums[1] - CENTRE * q->low_sum);
  const float middle = (float)product * (m->head_scales[id] * q->fine.step);
  const float radius = m->head_residuals[id] * q->norm + m->head_norms[id] * q->fine.error;
  keep(of->kept, q->k, middle - radius);
  of->bar = of->kept[0] - q->slack;
  if (middle + radius < of->bar)
    return;
  if (of->n == MOST_CAUGHT)
    thin_out(of);
  if (of->n >= 0) {
    of->ids[of->n] = id;
    of->upper[of->n++] = middle + radius;
  }
}

// 4 upper + 3/2 - CENTRE is what upper bits say of a code: its product with a digit, exactly.
static double by_upper(int32_t sum, int32_t digits) { return 4.0 * sum - (CENTRE - 1.5) * digits; }

// upper[r] = the upper end of row + r by the upper bits; whether any reaches the bar (what is no number does)
static int any_reaches(const bg_model *m, const query *q, int32_t row, int32_t rows, const int32_t *high,
                       const int32_t *low, float bar, float *upper) {
  const float *scales = m->head_scales + row, *residuals = m->head_upper_residuals + row,
              *norms = m->head_norms + row;
  const rounding of = low ? q->fine : q->coarse;
  int any = 0;
  for (int32_t r = 0; r < rows; r++) {
    const double product = low ? BASE * by_upper(high[r], q->high_sum) + by_upper(low[r], q->low_sum)
                               : by_upper(high[r], q->high_sum);
    upper[r] = (float)product * (scales[r] * of.step) + (residuals[r] * q->norm + norms[r] * of.error);
    any |= !(upper[r] < bar);
  }
  return any;
}

// Some rows for one query. low: NULL where only the high digit was multiplied.
static void screen_rows(const state *s, const query *q, int32_t row, int32_t rows, const int32_t *high,
                        const int32_t *low, net *of) {
  float upper[BLOCK];
  if (of->n < 0 || !any_reaches(s->model, q, row, rows, high, low, of->bar, upper))
    return;
  for (int32_t r = 0; r < rows && of->n >= 0; r++)
    if (!(upper[r] < of->bar))
      consider(s, q, row + r, of);
}

static void screen_share(void *arg, int32_t thread, int32_t threads) {
  const choosing *w = arg;
  const state *s = w->state;
  const int32_t end = share(s->model->config.vocab, thread + 1, threads), k = s->screen_row;
  const int8_t *digits[2 * CHOICES];
  int32_t n = w->n, low_of[CHOICES], sums[2 * CHOICES * BLOCK];
  for (int32_t t = 0; t < w->n; t++) {
    const query *q = &w->queries[t];
    net *of = net_of(s, thread, t);
    digits[t] = q->high;
    low_of[t] = q->both ? n : -1;
    if (q->both)
      digits[n++] = q->low;
    of->n = 0;
    of->bar = -INFINITY;
    for (int32_t i = 0; i < q->k; i++)
      of->kept[i] = -INFINITY;
  }
  for (int32_t row = share(s->model->config.vocab, thread, threads); row < end; row += BLOCK) {
    const int32_t rows = end - row < BLOCK ? end - row : BLOCK;
    s->ops->head->screen(s->model->head_upper + row * UPPER_BYTES(k), k, rows, digits, n, sums);
    for (int32_t t = 0; t < w->n; t++)
      screen_rows(s, &w->queries[t], row, rows, sums + t * rows,
                  low_of[t] < 0 ? NULL : sums + low_of[t] * rows, net_of(s, thread, t));
  }
}

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

// Round h to two digits.
static void round_state(const float *h, int32_t n, int8_t *high, int8_t *low, query *q) {
  const int32_t most = BASE * DIGIT;
  double norm = 0;
  float top = 0;
  for (int32_t i = 0; i < n; i++) {
    top = fabsf(h[i]) > top ? fabsf(h[i]) : top;
    norm += (double)h[i] * (double)h[i];
  }
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
  q->norm = (float)(sqrt(norm) * (1 + 0x1p-20));
  q->coarse.error = error_of(h, n, high, NULL, q->coarse.step);
  q->fine.error = error_of(h, n, high, low, q->fine.step);
}

// ---- what a choice depends on -----------------------------------------------------------------------------

// Ids among the last tokens of the history that a penalty may move: at most how many.
static int32_t penalised(const bg_sampling *how, int32_t history) {
  return how->repeat_penalty == 1 ? 0 : history < how->repeat_last ? history : how->repeat_last;
}

// How many of the greatest logits the choice depends on; 0: on all of them.
static int32_t depends_on(const state *s, const bg_sampling *how, int32_t history) {
  const int32_t moved = penalised(how, history), most = MOST_KEPT < s->model->config.vocab ? MOST_KEPT : 0;
  const int64_t k = (int64_t)(how->temperature == 0 ? 1 : how->top_k) + moved;
  return s->model->head_residuals && s->screen_row <= SCREENED && (how->temperature == 0 || how->top_k) &&
                 k < most
             ? (int32_t)k
             : 0;
}

// The t-th of the queries: about row i of the chunk's states.
static query query_for(state *s, int32_t i, int32_t t) {
  const bg_choice *ask = &s->want.asks[s->ask_of[i]];
  const size_t n = (size_t)s->hidden_row;
  int8_t *high = s->parts + (size_t)2 * t * s->screen_row, *low = high + s->screen_row;
  query q = {
      .ask = ask, .h = s->states + i * n, .high = high, .low = low, .slack = 1e-4f * ask->how->temperature};
  q.history = ask->n_history - s->left_of[i] + 1;
  q.k = depends_on(s, ask->how, q.history);
  if (!q.k)
    return q;
  round_state(q.h, s->hidden_row, high, low, &q);
  // For few tokens reading takes longer than multiplying; and too many rows may need the low digit.
  q.both = s->n_logits <= FEW || q.coarse.error > q.norm * (1.0f / 32);
  if (!(q.norm < INFINITY))
    q.k = 0;
  return q;
}

// ---- survivors --------------------------------------------------------------------------------------------

// Add the tokens that a penalty may move, wherever their intervals lie. -1: there is no room.
static int32_t add_moved(const state *s, const query *q, int32_t *ids, int32_t n) {
  const int32_t moved = penalised(q->ask->how, q->history);
  const int32_t *history = q->ask->history + q->history - moved;
  for (int32_t i = 0; i < moved; i++) {
    const int32_t at = place_of(ids, n, history[i]);
    if (history[i] < 0 || history[i] >= s->model->config.vocab || (at < n && ids[at] == history[i]))
      continue; // the sampler refuses what is no token
    if (n == MOST_CAUGHT)
      return -1;
    memmove(ids + at + 1, ids + at, (size_t)(n - at) * sizeof *ids);
    ids[at] = history[i];
    n++;
  }
  return n;
}

// ids = the rows, in order, whose interval reaches the k-th greatest lower end of all threads' rows, and
// those that a penalty may move; their number, or -1: too many. A survivor may lie a little below that end:
// the sampler ranks probabilities, and two logits this close may have the same.
static int32_t survivors(const state *s, const query *q, int32_t t, int32_t *ids) {
  const int32_t threads = pool_threads(s->pool), vocab = s->model->config.vocab;
  net *first = net_of(s, 0, t);
  int32_t n = 0;
  for (int32_t thread = 1; thread < threads; thread++)
    for (int32_t i = 0; i < q->k; i++)
      keep(first->kept, q->k, net_of(s, thread, t)->kept[i]);
  const float bar = first->kept[0] - q->slack;
  for (int32_t thread = 0; thread < threads; thread++) {
    const net *of = net_of(s, thread, t);
    if (of->n < 0)
      return -1;
    for (int32_t i = 0; i < of->n; i++)
      if (!(of->upper[i] < bar)) {
        if (n == MOST_CAUGHT)
          return -1;
        ids[n++] = of->ids[i];
      }
  }
  n = add_moved(s, q, ids, n);
  return n <= vocab / 8 && bar > -INFINITY ? n : -1;
}

// Each thread takes its share of every query's rows.
static void rescore_share(void *arg, int32_t thread, int32_t threads) {
  const choosing *w = arg;
  const state *s = w->state;
  const int32_t k = s->hidden_row;
  for (int32_t t = 0; t < w->n; t++) {
    const options *of = &w->queries[t].found;
    float *logits = s->some + (size_t)t * MOST_CAUGHT;
    for (int32_t i = share(of->n, thread, threads); of->ids && i < share(of->n, thread + 1, threads); i++)
      s->ops->head->f16(s->model->head_f16 + (size_t)of->ids[i] * k, k, 0, 1, w->queries[t].h, 1, logits + i,
                        0);
  }
}

// ---- choices ----------------------------------------------------------------------------------------------

static void take_all(state *s, query *q, float *logits) {
  q->found = (options){logits, NULL, s->model->config.vocab};
  s->rescored += s->model->config.vocab;
}

// Logits that decide for each query: of some tokens, or of all.
static void decisive_logits(choosing *w) {
  state *s = w->state;
  pool_run(s->pool, screen_share, w);
  for (int32_t t = 0; t < w->n; t++) {
    query *q = &w->queries[t];
    int32_t *ids = s->ids + (size_t)t * MOST_CAUGHT;
    const int32_t n = survivors(s, q, t, ids);
    float *logits = s->choices + (size_t)t * s->model->config.vocab;
    if (n >= 0) {
      q->found = (options){s->some + (size_t)t * MOST_CAUGHT, ids, n};
      s->rescored += n;
    } else {
      output_logits(s, q->h, 1, logits);
      take_all(s, q, logits);
    }
  }
  pool_run(s->pool, rescore_share, w);
}

// The states of a pass lie one behind the other.
static void all_logits(choosing *w) {
  state *s = w->state;
  output_logits(s, w->queries[0].h, w->n, s->choices);
  for (int32_t t = 0; t < w->n; t++)
    take_all(s, &w->queries[t], s->choices + (size_t)t * s->model->config.vocab);
}

void choose_tokens(state *s) {
  for (int32_t done = 0; done < s->n_logits; done += CHOICES) {
    choosing w = {.state = s, .n = s->n_logits - done < CHOICES ? s->n_logits - done : CHOICES};
    int all = 0;
    for (int32_t t = 0; t < w.n; t++) {
      w.queries[t] = query_for(s, done + t, t);
      all |= !w.queries[t].k;
    }
    if (all)
      all_logits(&w);
    else
      decisive_logits(&w);
    for (int32_t t = 0; t < w.n; t++) {
      const query *q = &w.queries[t];
      const int32_t nth = q->ask->count - s->left_of[done + t];
      const int32_t token =
          sample(s, q->ask->how, &q->found, q->ask->history, q->history, q->ask->step + (uint64_t)nth);
      s->want.chosen[done + t] = token;
      if (token < 0 && s->code == BG_OK)
        s->code = token;
    }
    lap(s, BG_STEP_HEAD);
  }
}

int32_t bg_next_batch(bg_session *const *sessions, int32_t count, const int32_t *tokens,
                      const int32_t *lengths, const bg_choice *asks, int32_t *chosen) {
  if (!lengths || !asks || !chosen)
    return BG_E_ARGUMENT;
  for (int32_t i = 0; i < count; i++) {
    const bg_choice *ask = &asks[i];
    if (!ask->how || !ask->history || ask->count < 1 || ask->count > lengths[i] ||
        ask->n_history < ask->count || !sampling_is_sane(ask->how))
      return BG_E_ARGUMENT;
  }
  const wanted want = {.asks = asks, .chosen = chosen};
  return append(sessions, count, tokens, lengths, &want);
}

int32_t bg_next(bg_session *session, const int32_t *tokens, int32_t n, const bg_sampling *how,
                const int32_t *history, int32_t n_history, uint64_t step, int32_t *chosen, int32_t count) {
  const bg_choice ask = {how, history, n_history, count, step};
  return bg_next_batch(&session, 1, tokens, &n, &ask, chosen);
}

int64_t bg_rescored(const bg_session *session) { return session ? session->state->rescored : BG_E_ARGUMENT; }
