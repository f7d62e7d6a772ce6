// delta_tasks.c: which thread computes what of Gated DeltaNet. The arithmetic is delta.c's.
//
// Two steps of a layer take all tokens of a run in order, in units that have nothing to do with each other: a head of
// queries, keys or values in the convolution, a slice of a value head's state in the recurrence. A sequence's state
// may lie in its base still: then each unit copies its part first, so that going back to the base costs nothing.
#include "core/delta_tasks.h"

#include <string.h>

enum { MAX_TAPS_IN_FLIGHT = 64 }; // model.c admits no more

static size_t layer_at(const state *s, const delta_state *d) { return (size_t)layer_of(s)->index * d->layer; }

// The log's rows of a position in this layer.
static size_t logged(const state *s, const delta_state *d, int32_t position) {
  return (size_t)layer_of(s)->index * REWINDABLE + (size_t)(position - d->from);
}
static float *logged_inputs(const state *s, const delta_state *d, int32_t position) {
  return d->inputs + logged(s, d, position) * (size_t)s->model->delta.channels;
}
static float *logged_rates(const state *s, const delta_state *d, int32_t position) {
  return d->rates + logged(s, d, position) * rate_row(s);
}

// ---- decay and beta -------------------------------------------------------------------------------------

static void rates_task(void *arg, int32_t thread, int32_t threads) {
  state *s = arg;
  const int32_t rows = (int32_t)rate_row(s), row0 = range_begin(rows, thread, threads),
                row1 = range_begin(rows, thread + 1, threads);
  if (row0 < row1)
    s->ops->dense[s->model->config.delta_rates].multiply(layer_of(s)->rates, s->hidden_row, row0, row1,
                                                         s->final_states, s->chunk.n, s->rates, rate_row(s));
}

void multiply_rates(state *s) { pool_run(s->pool, rates_task, s); }

static void rates_of_run(state *s, const run *r) {
  const bg_layer *l = layer_of(s);
  const delta_state *d = &r->session->delta;
  const int32_t heads = padded(s->model->config.delta_value_heads);
  for (int32_t i = 0; i < r->n; i++) {
    float *decay = s->rates + (size_t)(r->row0 + i) * rate_row(s);
    const int32_t position = r->session->position + i;
    if (s->chunk.replays) {
      memcpy(decay, logged_rates(s, d, position), rate_row(s) * sizeof *decay);
      continue;
    }
    s->ops->delta->rates(l->decay, l->step, heads, decay, decay + heads);
    if (d->logs)
      memcpy(logged_rates(s, d, position), decay, rate_row(s) * sizeof *decay);
  }
}

// ---- the convolution ------------------------------------------------------------------------------------

// The channels of a head, and the length of queries and keys (values keep theirs: 0).
typedef struct {
  int32_t at, n;
  float length;
} head_channels;

static head_channels channels_of(const state *s, int32_t head) {
  const bg_header *c = &s->model->config;
  const int32_t keys = c->delta_key_heads, d = c->delta_key_dim;
  if (head < keys)
    return (head_channels){head * d, d, 1.0f / __builtin_sqrtf((float)d)};
  if (head < 2 * keys)
    return (head_channels){head * d, d, 1.0f};
  return (head_channels){2 * keys * d + (head - 2 * keys) * c->delta_value_dim, c->delta_value_dim, 0};
}

// x = the convolution's input of a run's token i
static void read_input(const state *s, const run *r, int32_t i, const head_channels *of, float *x) {
  const delta_state *d = &r->session->delta;
  const size_t bytes = (size_t)of->n * sizeof *x;
  const int32_t t = r->row0 + i, position = r->session->position + i;
  if (s->chunk.replays) {
    memcpy(x, logged_inputs(s, d, position) + of->at, bytes);
    return;
  }
  s->rows->dequantise(products_of(s, PART_DELTA_QKV, t) + of->at, of->n, factor(s, PART_DELTA_QKV, t), x);
  if (d->logs)
    memcpy(logged_inputs(s, d, position) + of->at, x, bytes);
}

// recent: [taps][n] the latest inputs, that of token i in row (taps - 1 + i) % taps
static void convolve_head(state *s, const run *r, int32_t head, float *recent) {
  const bg_delta_sizes *sizes = &s->model->delta;
  const int32_t taps = s->model->config.delta_taps;
  const head_channels of = channels_of(s, head);
  delta_state *d = &r->session->delta;
  const size_t bytes = (size_t)of.n * sizeof *recent, tail = layer_at(s, d) + sizes->state + (size_t)of.at;
  const float *before = (d->fresh ? d->base : d->now) + tail;
  for (int32_t i = 0; i < taps - 1; i++)
    memcpy(recent + i * of.n, before + (size_t)i * sizes->channels, bytes);
  for (int32_t i = 0; i < r->n; i++) {
    const float *x[MAX_TAPS_IN_FLIGHT];
    for (int32_t tap = 0; tap < taps; tap++)
      x[tap] = recent + (i + tap) % taps * of.n;
    float *y = mixed_of(s, r->row0 + i) + of.at;
    read_input(s, r, i, &of, recent + (i + taps - 1) % taps * of.n);
    s->ops->delta->convolve(x, layer_of(s)->convolution + of.at, (size_t)padded(sizes->channels), taps, of.n,
                            y);
    if (of.length > 0)
      s->ops->delta->unit(y, of.n, of.length);
  }
  for (int32_t i = 0; i < taps - 1; i++)
    memcpy(d->now + tail + (size_t)i * sizes->channels, recent + (r->n + i) % taps * of.n, bytes);
}

// ---- the recurrence -------------------------------------------------------------------------------------

static void pass_slice(state *s, const run *r, int32_t head, int32_t slice) {
  const bg_header *c = &s->model->config;
  const bg_delta_sizes *sizes = &s->model->delta;
  delta_state *d = &r->session->delta;
  const size_t at = layer_at(s, d) + ((size_t)head * (size_t)sizes->slices + (size_t)slice) * sizes->slice;
  const int32_t first = slice * DELTA_COLUMNS, rest = c->delta_value_dim - first;
  const float *q = mixed_of(s, r->row0) + head % c->delta_key_heads * c->delta_key_dim;
  float *v = mixed_of(s, r->row0) + 2 * sizes->keys + head * c->delta_value_dim + first;
  const float *decay = s->rates + (size_t)r->row0 * rate_row(s) + head;
  if (d->fresh)
    memcpy(d->now + at, d->base + at, sizes->slice * sizeof(float));
  s->ops->delta->pass_tokens(d->now + at, c->delta_key_dim, rest < DELTA_COLUMNS ? rest : DELTA_COLUMNS, q,
                             q + sizes->keys, v, (size_t)sizes->channels, decay,
                             decay + padded(c->delta_value_heads), rate_row(s), r->n);
}

// ---- units of work --------------------------------------------------------------------------------------

// The unit of a run.
typedef void run_unit(state *s, const run *r, int32_t unit, int32_t thread);
typedef struct {
  state *state;
  run_unit *unit;
  int32_t units; // of each run
} run_work;

static void runs_task(void *arg, int32_t thread, int32_t threads) {
  (void)threads;
  const run_work *w = arg;
  state *s = w->state;
  const int32_t end = w->units * s->chunk.n_runs;
  int32_t i;
  while ((i = atomic_fetch_add_explicit(&s->next_unit, 1, memory_order_relaxed)) < end)
    w->unit(s, &s->chunk.runs[i / w->units], i % w->units, thread);
}

static void each_unit(state *s, run_unit *unit, int32_t units) {
  run_work w = {s, unit, units};
  atomic_store_explicit(&s->next_unit, 0, memory_order_relaxed);
  pool_run(s->pool, runs_task, &w);
}

static void convolve_unit(state *s, const run *r, int32_t unit, int32_t thread) {
  if (unit == 0)
    rates_of_run(s, r);
  else
    convolve_head(s, r, unit - 1, s->input + (size_t)thread * (size_t)s->input_row);
}

void convolve(state *s) {
  const bg_header *c = &s->model->config;
  each_unit(s, convolve_unit, 1 + 2 * c->delta_key_heads + c->delta_value_heads);
}

static void pass_unit(state *s, const run *r, int32_t unit, int32_t thread) {
  (void)thread;
  pass_slice(s, r, unit / s->model->delta.slices, unit % s->model->delta.slices);
}

void pass_states(state *s) {
  each_unit(s, pass_unit, s->model->config.delta_value_heads * s->model->delta.slices);
}

void leave_states(state *s) {
  for (int32_t i = 0; i < s->chunk.n_runs; i++)
    s->chunk.runs[i].session->delta.fresh = 0;
}

// ---- going back -----------------------------------------------------------------------------------------

// The base becomes the state of the session's position.
static void move_base(bg_session *of) {
  delta_state *d = &of->delta;
  if (!d->fresh) {
    float *older = d->base;
    d->base = d->now;
    d->now = older;
    d->fresh = 1;
  }
  d->from = of->position;
}

void delta_begin(bg_session *of, int32_t n) {
  if (!of->state->model->delta.layers)
    return;
  of->delta.logs = n <= REWINDABLE;
  if (of->delta.logs && of->position - of->delta.from > REWINDABLE - n)
    move_base(of);
}

void delta_keep(bg_session *of) {
  if (of->state->model->delta.layers && !of->delta.logs)
    move_base(of);
}

// The state n tokens after the base, from the log.
static void replay(bg_session *of, int32_t n) {
  state *s = of->state;
  chunk *c = &s->chunk;
  c->runs[0] = (run){.session = of, .n = n};
  c->n = n;
  c->n_runs = 1;
  c->replays = 1;
  of->position = of->delta.from;
  for (c->layer = 0; c->layer < s->model->config.layers; c->layer++)
    if (layer_of(s)->kind == LAYER_DELTA) {
      convolve(s);
      pass_states(s);
    }
  leave_states(s);
  c->n = c->n_runs = c->replays = 0;
}

int32_t delta_rewind(bg_session *of, int32_t position) {
  delta_state *d = &of->delta;
  if (!of->state->model->delta.layers || position == of->position)
    return BG_OK;
  if (position == 0) {
    memset(d->base, 0, delta_bytes(of));
    d->from = d->awaits = 0;
  } else if (d->awaits || position < d->from) {
    return BG_E_STATE;
  }
  d->fresh = 1;
  if (position > d->from)
    replay(of, position - d->from);
  return BG_OK;
}

// ---- the state's bytes ----------------------------------------------------------------------------------

size_t delta_bytes(const bg_session *of) {
  return (size_t)of->state->model->delta.layers * of->delta.layer * sizeof(float);
}

const float *delta_now(const bg_session *of) { return of->delta.fresh ? of->delta.base : of->delta.now; }

void delta_load(bg_session *of, const uint8_t *bytes) {
  delta_state *d = &of->delta;
  memcpy(d->base, bytes, delta_bytes(of));
  d->fresh = 1;
  d->from = of->position;
  d->awaits = 0;
}
