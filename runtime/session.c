// session.c: the forward pass. Read forward_chunk first: it is the model.
//
// A chunk of n tokens, of one sequence or of many, goes through the layers together; n == 1 takes the decode
// kernels (gemv), more the prefill kernels (gemm). Work is divided among threads by tokens (rows of
// activations), by panels of weight rows, by (run, head, block of positions), by rows of the output matrix;
// no division changes any result, and neither does the company that a sequence is in.
#include "session.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fpstate.h"
#include "product.h"
#include "rope.h"

// ---- rows of buffers ------------------------------------------------------------------------------------

static const bg_layer *layer(const state *s) { return &s->model->layers[s->layer]; }
static float *x_of(const state *s, int32_t t) { return s->x + (size_t)t * s->hidden_row; }
static float *h_of(const state *s, int32_t thread) { return s->h + (size_t)thread * s->wide_row; }

static const bg_kernel *kernel(const state *s, int role) {
  return s->n == 1 ? s->model->isa->gemv[role] : s->model->isa->gemm[role];
}
static uint8_t *operand_of(const state *s, int role, int32_t t) {
  return s->operand + s->operand_at[role] + (size_t)t * kernel(s, role)->operand_bytes;
}

// The rows of a part in its matrix's product, and what they are to be multiplied by.
static const int32_t *y_of(const state *s, int part, int32_t t) {
  const bg_part *p = &s->model->parts[part];
  return s->y + s->y_at[p->role] + (size_t)t * kernel(s, p->role)->m_pad + p->row;
}
static float factor(const state *s, int part, int32_t t) {
  return layer(s)->scales[part] / s->s[t * BG_ROLES + s->model->parts[part].role];
}

// ---- profile --------------------------------------------------------------------------------------------

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

void lap(state *s, int step) {
  if (!s->profiling)
    return;
  const int64_t now = nanoseconds();
  s->times[step].nanoseconds += now - s->lap_began;
  s->times[step].calls++;
  s->lap_began = now;
}

int32_t bg_profile(bg_session *session, int32_t on, bg_step_time *out) {
  if (!session)
    return BG_E_ARGUMENT;
  state *s = session->state;
  if (out)
    memcpy(out, s->times, sizeof s->times);
  if (on)
    memset(s->times, 0, sizeof s->times);
  s->profiling = on != 0;
  return BG_OK;
}

// ---- work over tokens -----------------------------------------------------------------------------------

typedef void token_step(state *s, int32_t t, int32_t thread);
typedef struct {
  state *state;
  token_step *step;
} token_work;

static void token_share(void *arg, int32_t thread, int32_t threads) {
  token_work *w = arg;
  const int32_t n = w->state->n, end = share(n, thread + 1, threads);
  for (int32_t t = share(n, thread, threads); t < end; t++)
    w->step(w->state, t, thread);
}

static void each_token(state *s, token_step *step, int timed_as) {
  token_work w = {s, step};
  if (s->n == 1)
    step(s, 0, 0);
  else
    pool_run(s->pool, token_share, &w);
  lap(s, timed_as);
}

// x = embedding row; cos and sin of the position
static void embed(state *s, int32_t t, int32_t thread) {
  (void)thread;
  const bg_header *c = &s->model->config;
  const int32_t d = c->head_dim, angles = c->window ? d : d / 2;
  s->ops->widen(s->model->embedding + (size_t)s->tokens[t] * s->hidden_row, s->hidden_row, c->embedding_scale,
                x_of(s, t));
  for (int32_t i = 0; i < angles; i++)
    rope_cos_sin((float)position_of(s, t) * s->model->rope_frequency[i], &s->cos[t * d + i],
                 &s->sin[t * d + i]);
}

// y = norm(x) of n elements, where the layer has such a norm
static void normalise(const state *s, int norm, const float *x, int32_t n, float *y) {
  if (layer(s)->norms[norm])
    s->ops->rmsnorm(x, layer(s)->norms[norm], n, s->model->config.norm_eps, y);
}

// The same for a kernel with groups, whose factors are in the row of q and in the matrix: 1 remains.
static float quantise_groups(const state *s, const bg_kernel *k, const float *x, int8_t *q) {
  uint8_t *steps = (uint8_t *)q + k->k;
  for (int32_t i = 0; i < k->k; i += k->group, steps += sizeof(float)) {
    const float step = 1.0f / s->ops->quantise(x + i, k->group, q + i);
    memcpy(steps, &step, sizeof step);
  }
  return 1.0f;
}

// For each matrix of a stage, which may have a norm of its own: q, s = quantise(row); operand = q as its
// kernel wants it. Where it has, the row is in h, and h has room for another behind it.
static void quantise_for(state *s, int stage, int32_t t, int32_t thread, const float *row) {
  const bg_stage *of = &bg_stages[stage][s->model->config.input_norms];
  for (int32_t i = 0; i < of->n; i++) {
    const int role = of->matrices[i].role, norm = of->matrices[i].norm;
    const bg_kernel *k = kernel(s, role);
    int8_t *q = s->q + (size_t)thread * s->q_row;
    const float *input = row;
    if (norm >= 0) {
      float *normed = h_of(s, thread) + s->hidden_row;
      normalise(s, norm, row, k->k, normed);
      input = normed;
    }
    s->s[t * BG_ROLES + role] = k->group ? quantise_groups(s, k, input, q) : s->ops->quantise(input, k->k, q);
    k->prepare(q, 1, operand_of(s, role, t));
  }
}

// x += part's rows, normed where the layer has such a norm
static void add_to_stream(state *s, int part, int post_norm, int32_t t, int32_t thread) {
  const int32_t n = s->model->config.hidden;
  float *x = x_of(s, t), *h = h_of(s, thread);
  if (!layer(s)->norms[post_norm]) {
    s->rows->add_dequantised(y_of(s, part, t), n, factor(s, part, t), x);
    return;
  }
  s->rows->dequantise(y_of(s, part, t), n, factor(s, part, t), h);
  memset(h + n, 0, (size_t)(s->hidden_row - n) * sizeof *h);
  normalise(s, post_norm, h, n, h);
  for (int32_t i = 0; i < n; i++)
    x[i] += h[i];
}

// h = norm(x), for q, k and v
static void enter_attention(state *s, int32_t t, int32_t thread) {
  normalise(s, NORM_ATTENTION, x_of(s, t), s->model->config.hidden, h_of(s, thread));
  quantise_for(s, BG_QKV, t, thread, h_of(s, thread));
}

// query = rope(norm(q)); cache <- rope(norm(k)), v
static void split_heads(state *s, int32_t t, int32_t thread) {
  const bg_header *c = &s->model->config;
  const int32_t d = c->head_dim, kv = c->kv_heads * d, angles = t * d + (s->window < INT32_MAX ? d / 2 : 0);
  const float *cos = s->cos + angles, *sin = s->sin + angles;
  float *q = query_of(s, t), *k = h_of(s, thread), *v = k + kv;
  s->rows->dequantise(y_of(s, PART_Q, t), c->heads * d, factor(s, PART_Q, t), q);
  s->rows->dequantise(y_of(s, PART_K, t), kv, factor(s, PART_K, t), k);
  s->rows->dequantise(y_of(s, PART_V, t), kv, factor(s, PART_V, t), v);
  if (c->qk_norm) {
    s->ops->rmsnorm_heads(q, c->heads, d, layer(s)->norms[NORM_Q], c->norm_eps);
    s->ops->rmsnorm_heads(k, c->kv_heads, d, layer(s)->norms[NORM_K], c->norm_eps);
  }
  void (*rope)(float *, int32_t, int32_t, const float *, const float *) =
      c->rope_interleaved ? s->ops->rope_pairs : s->ops->rope_halves;
  rope(q, c->heads, d, cos, sin);
  rope(k, c->kv_heads, d, cos, sin);
  const bg_session *of = run_of(s, t)->session;
  for (int32_t head = 0; head < c->kv_heads; head++)
    s->attention->write(k + head * d, v + head * d, d, position_of(s, t), k_cache(of, head),
                        v_cache(of, head));
}

// x += o; h = norm(x), for gate and up
static void enter_ffn(state *s, int32_t t, int32_t thread) {
  add_to_stream(s, PART_O, NORM_POST_ATTENTION, t, thread);
  normalise(s, NORM_FFN, x_of(s, t), s->model->config.hidden, h_of(s, thread));
  quantise_for(s, BG_GATE_UP, t, thread, h_of(s, thread));
}

// h = norm(act(gate) up), for down
static void activate(state *s, int32_t t, int32_t thread) {
  const bg_header *c = &s->model->config;
  void (*const act[])(const int32_t *, const int32_t *, int32_t, float, float,
                      float *) = {s->rows->silu, s->rows->relu2, s->rows->gelu};
  float *h = h_of(s, thread);
  act[c->activation](y_of(s, PART_GATE, t), y_of(s, PART_UP, t), c->intermediate, factor(s, PART_GATE, t),
                     factor(s, PART_UP, t), h);
  normalise(s, NORM_DOWN_IN, h, c->intermediate, h);
  quantise_for(s, BG_DOWN, t, thread, h);
}

// x += down
static void leave_ffn(state *s, int32_t t, int32_t thread) {
  add_to_stream(s, PART_DOWN, NORM_POST_FFN, t, thread);
}

// ---- products -------------------------------------------------------------------------------------------

_Static_assert((int)BG_STEP_QKV == BG_QKV && (int)BG_STEP_O == BG_O && (int)BG_STEP_GATE_UP == BG_GATE_UP &&
                   (int)BG_STEP_DOWN == BG_DOWN,
               "a stage's step is its number");

// y int32 [n][m_pad] = W q, for each matrix of a stage
static void multiply(state *s, int stage) {
  const bg_stage *of = &bg_stages[stage][s->model->config.input_norms];
  for (int32_t i = 0; i < of->n; i++) {
    const int role = of->matrices[i].role;
    product p = {kernel(s, role), layer(s)->packed[role], operand_of(s, role, 0), s->n, s->y + s->y_at[role],
                 s->work};
    pool_run(s->pool, product_share, &p);
  }
  lap(s, stage);
}

// query = the heads' contexts; the norm over all of them
static void leave_attention(state *s, int32_t t, int32_t thread) {
  const bg_header *c = &s->model->config;
  float *context = query_of(s, t);
  merge_blocks(s, t);
  normalise(s, NORM_O_IN, context, c->heads * c->head_dim, context);
  quantise_for(s, BG_O, t, thread, context);
}

// states [n_logits][hidden_row] = norm(x), of the rows whose logits or states are wanted
static void final_norm(state *s, int32_t t, int32_t thread) {
  (void)thread;
  const bg_header *c = &s->model->config;
  const int32_t i = s->logits_of[t];
  if (i < 0)
    return;
  float *h = s->states + (size_t)i * s->hidden_row;
  s->ops->rmsnorm(x_of(s, t), s->model->output_norm, c->hidden, c->norm_eps, h);
  if (s->want.states)
    memcpy(s->want.states + (size_t)i * c->hidden, h, (size_t)c->hidden * sizeof *h);
}

// ---- the forward pass -----------------------------------------------------------------------------------

// Positions that a token sees in a layer; INT32_MAX: all.
static int32_t window_of(const bg_header *c, int32_t layer) {
  return c->window && (layer + 1) % c->window_period ? c->window : INT32_MAX;
}

static void forward_chunk(state *s) {
  const bg_header *c = &s->model->config;
  if (s->profiling)
    s->lap_began = nanoseconds();
  each_token(s, embed, BG_STEP_EMBED);
  for (s->layer = 0; s->layer < c->layers; s->layer++) {
    s->window = window_of(c, s->layer);
    each_token(s, enter_attention, BG_STEP_ENTER_ATTENTION);
    multiply(s, BG_QKV);
    each_token(s, split_heads, BG_STEP_SPLIT_HEADS);
    attend(s);
    lap(s, BG_STEP_ATTENTION);
    each_token(s, leave_attention, BG_STEP_LEAVE_ATTENTION);
    multiply(s, BG_O);
    each_token(s, enter_ffn, BG_STEP_ENTER_FFN);
    multiply(s, BG_GATE_UP);
    each_token(s, activate, BG_STEP_ACTIVATE);
    multiply(s, BG_DOWN);
    each_token(s, leave_ffn, BG_STEP_LEAVE_FFN);
  }
  if (s->n_logits) {
    each_token(s, final_norm, BG_STEP_FINAL_NORM);
    if (s->want.logits) {
      output_logits(s, s->states, s->n_logits, s->want.logits);
      lap(s, BG_STEP_HEAD);
    }
    if (s->want.asks)
      choose_tokens(s);
  }
}

// Append to the chunk up to `left` tokens of a session, of whose last ones `last` are wanted.
static int32_t append_run(state *s, bg_session *session, int32_t ask, int32_t left, int32_t last) {
  const int32_t n = left < s->chunk - s->n ? left : s->chunk - s->n;
  run *r = &s->runs[s->n_runs];
  *r = (run){.session = session, .row0 = s->n, .n = n};
  r->units_end = attend_units(r) + (s->n_runs ? r[-1].units_end : 0);
  for (int32_t i = 0; i < n; i++) {
    const int32_t row = s->n + i;
    s->run_of[row] = s->n_runs;
    s->logits_of[row] = left - i <= last ? s->n_logits++ : -1;
    if (s->logits_of[row] >= 0) {
      s->ask_of[s->logits_of[row]] = ask;
      s->left_of[s->logits_of[row]] = left - i;
    }
  }
  s->n_runs++;
  s->n += n;
  return n;
}

static void forward_and_advance(state *s) {
  forward_chunk(s);
  for (int32_t i = 0; i < s->n_runs; i++)
    s->runs[i].session->position += s->runs[i].n;
  s->tokens += s->n;
  if (s->want.logits)
    s->want.logits += (size_t)s->n_logits * s->model->config.vocab;
  if (s->want.states)
    s->want.states += (size_t)s->n_logits * s->model->config.hidden;
  if (s->want.asks)
    s->want.chosen += s->n_logits;
  s->n = s->n_runs = s->n_logits = 0;
}

// Whether every token of every session can be appended.
static int32_t check_batch(bg_session *const *sessions, int32_t count, const int32_t *tokens,
                           const int32_t *lengths) {
  if (!sessions || !tokens || !lengths || count < 1)
    return BG_E_ARGUMENT;
  for (int32_t i = 0; i < count; i++) {
    if (!sessions[i] || sessions[i]->state != sessions[0]->state || lengths[i] < 1)
      return BG_E_ARGUMENT;
    for (int32_t j = 0; j < i; j++)
      if (sessions[j] == sessions[i])
        return BG_E_ARGUMENT;
  }
  for (int32_t i = 0; i < count; i++)
    if (lengths[i] > sessions[i]->context - sessions[i]->position)
      return BG_E_CONTEXT;
  for (int32_t i = 0; i < count; i++)
    for (int32_t j = 0; j < lengths[i]; j++, tokens++)
      if (*tokens < 0 || *tokens >= sessions[0]->state->model->config.vocab)
        return BG_E_TOKEN;
  return BG_OK;
}

int32_t append(bg_session *const *sessions, int32_t count, const int32_t *tokens, const int32_t *lengths,
               const wanted *want) {
  const int32_t code = check_batch(sessions, count, tokens, lengths);
  if (code != BG_OK)
    return code;
  const uint64_t callers = fp_default();
  state *s = sessions[0]->state;
  s->tokens = tokens;
  s->want = *want;
  s->code = BG_OK;
  for (int32_t i = 0; i < count; i++)
    for (int32_t left = lengths[i]; left;) {
      left -= append_run(s, sessions[i], i, left, want->asks ? want->asks[i].count : want->last);
      if (left || s->n == s->chunk || i == count - 1)
        forward_and_advance(s);
    }
  fp_set(callers);
  return s->code;
}

int32_t bg_forward_batch(bg_session *const *sessions, int32_t count, const int32_t *tokens,
                         const int32_t *lengths, float *logits, int32_t all) {
  const wanted want = {.logits = logits, .last = !logits ? 0 : all ? INT32_MAX : 1};
  return append(sessions, count, tokens, lengths, &want);
}

int32_t bg_states_batch(bg_session *const *sessions, int32_t count, const int32_t *tokens,
                        const int32_t *lengths, float *states, int32_t all) {
  const wanted want = {.states = states, .last = all ? INT32_MAX : 1};
  return states ? append(sessions, count, tokens, lengths, &want) : BG_E_ARGUMENT;
}

int32_t bg_forward(bg_session *session, const int32_t *tokens, int32_t n, float *logits, int32_t all) {
  return bg_forward_batch(&session, 1, tokens, &n, logits, all);
}

// ---- opening and closing --------------------------------------------------------------------------------

// Zeroed, 64-byte aligned; NULL (and so in the end an error) when memory is short.
static void *zeros(arena *a, uint64_t count, uint64_t size) {
  const uint64_t bytes = count * size + 64;
  char *raw = bytes <= SIZE_MAX / 2 ? calloc(1, (size_t)bytes) : NULL;
  a->owned[a->n++] = raw;
  return raw ? raw + (64 - (uintptr_t)raw % 64) % 64 : NULL;
}

static int32_t complete(const arena *a) {
  for (int32_t i = 0; i < a->n; i++)
    if (!a->owned[i])
      return BG_E_MEMORY;
  return BG_OK;
}

static void release(arena *a) {
  for (int32_t i = 0; i < a->n; i++)
    free(a->owned[i]);
}

static int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }
static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

// Numbers of y, bytes of operand, bytes of each thread's scratch, that any stage needs.
typedef struct {
  size_t y, operand, work;
} products_size;

// The matrices of a stage lie side by side in y and operand; the stages share them.
static products_size place_products(state *s) {
  products_size all = {0, 0, 0};
  for (int stage = 0; stage < STAGES; stage++) {
    const bg_stage *of = &bg_stages[stage][s->model->config.input_norms];
    size_t y = 0, operand = 0;
    for (int32_t i = 0; i < of->n; i++) {
      const int role = of->matrices[i].role;
      const bg_kernel *one = s->model->isa->gemv[role], *many = s->model->isa->gemm[role];
      s->y_at[role] = y;
      s->operand_at[role] = operand;
      y += (size_t)s->chunk * (size_t)most(one->m_pad, many->m_pad);
      operand += (size_t)s->chunk * larger(one->operand_bytes, many->operand_bytes);
      s->q_row = most(s->q_row, (int32_t)round_up(bg_row_bytes(one), 64));
      all.work = larger(all.work, larger(one->scratch_bytes, many->scratch_bytes));
    }
    all.y = larger(all.y, y);
    all.operand = larger(all.operand, operand);
  }
  return all;
}

// Sizes are bounded by what bg_open admits: no product here overflows 64 bits.
static int32_t allocate_state(state *s) {
  const bg_header *c = &s->model->config;
  const int32_t d = c->head_dim;
  s->hidden_row = padded(c->hidden);
  s->query_row = padded(c->heads * d);
  s->wide_row =
      most(most((1 + c->input_norms) * s->hidden_row, padded(2 * c->kv_heads * d)), padded(c->intermediate));
  const products_size size = place_products(s);
  arena *a = &s->arena;
  s->x = zeros(a, s->chunk, s->hidden_row * sizeof *s->x);
  s->query = zeros(a, s->chunk, s->query_row * sizeof *s->query);
  s->h = zeros(a, pool_threads(s->pool), s->wide_row * sizeof *s->h);
  s->q = zeros(a, pool_threads(s->pool), s->q_row);
  s->states = zeros(a, s->chunk, s->hidden_row * sizeof *s->states);
  s->s = zeros(a, s->chunk, BG_ROLES * sizeof *s->s);
  s->operand = zeros(a, 1, size.operand);
  s->y = zeros(a, size.y, sizeof *s->y);
  s->work = zeros(a, pool_threads(s->pool), size.work);
  s->cos = zeros(a, s->chunk, d * sizeof *s->cos);
  s->sin = zeros(a, s->chunk, d * sizeof *s->sin);
  s->scratch = zeros(a, (uint64_t)pool_threads(s->pool) * 2 * ATTEND_ROWS, partial_floats(d) * sizeof(float));
  s->scores = zeros(a, c->vocab, sizeof *s->scores);
  s->order = zeros(a, c->vocab, sizeof *s->order);
  s->screen_row = (int32_t)round_up(s->hidden_row, SCREEN_COLUMNS);
  s->parts = zeros(a, 2 * CHOICES, s->screen_row);
  s->nets = zeros(a, (uint64_t)pool_threads(s->pool) * CHOICES, sizeof *s->nets);
  s->ids = zeros(a, CHOICES, MOST_CAUGHT * sizeof *s->ids);
  s->some = zeros(a, CHOICES, MOST_CAUGHT * sizeof *s->some);
  s->choices = zeros(a, CHOICES, c->vocab * sizeof *s->choices);
  return complete(a);
}

static void close_state(state *s) {
  if (atomic_fetch_sub(&s->sessions, 1) > 1)
    return;
  pool_close(s->pool);
  release(&s->arena);
  free(s);
}

static int32_t open_state(const bg_model *model, const bg_attention_ops *attention, int32_t threads,
                          int32_t context, state **out) {
  state *s = calloc(1, sizeof *s);
  if (!s)
    return BG_E_MEMORY;
  s->model = model;
  s->ops = model->isa->ops;
  s->rows = model->isa->gemv[BG_O]->group ? s->ops->floats : s->ops->sums;
  s->attention = attention;
  s->sessions = 1;
  s->chunk = context < LEAST_CHUNK ? LEAST_CHUNK : context < CHUNK ? context : CHUNK;
  int32_t code = pool_open(threads, &s->pool);
  if (code == BG_OK)
    code = allocate_state(s);
  if (code == BG_OK)
    *out = s;
  else
    close_state(s);
  return code;
}

static int32_t allocate_session(bg_session *session) {
  const state *s = session->state;
  const bg_header *c = &s->model->config;
  const uint64_t caches = (uint64_t)c->layers * c->kv_heads;
  session->attend_blocks = (session->context + ATTEND_BLOCK - 1) / ATTEND_BLOCK;
  const size_t positions = (size_t)session->attend_blocks * ATTEND_BLOCK;
  session->k_head =
      positions * (round_up(c->head_dim, I8_GROUP) * s->attention->width + s->attention->beside);
  session->v_head = positions * (padded(c->head_dim) * s->attention->width + s->attention->beside);
  session->k = zeros(&session->arena, caches, session->k_head);
  session->v = zeros(&session->arena, caches, session->v_head);
  session->partials = zeros(&session->arena, (uint64_t)SPREAD * c->heads * session->attend_blocks,
                            partial_floats(c->head_dim) * sizeof(float));
  return complete(&session->arena);
}

// A session takes over a reference to its state, also where it cannot be opened.
static int32_t open_session(state *s, int32_t context, bg_session **out) {
  bg_session *session = calloc(1, sizeof *session);
  if (!session) {
    close_state(s);
    return BG_E_MEMORY;
  }
  session->state = s;
  session->context = context;
  const int32_t code = allocate_session(session);
  if (code == BG_OK)
    *out = session;
  else
    bg_session_close(session);
  return code;
}

int32_t bg_session_open(bg_model *model, int32_t threads, int32_t context, int32_t cache, bg_session **out) {
  if (!model || !out)
    return BG_E_ARGUMENT;
  *out = NULL;
  const bg_ops *ops = model->isa->ops;
  const bg_attention_ops *const caches[] = {[BG_CACHE_F16] = ops->attention_f16,
                                            [BG_CACHE_F32] = ops->attention_f32,
                                            [BG_CACHE_I8] = ops->attention_i8};
  const int32_t kinds = sizeof caches / sizeof *caches;
  if (cache < 0 || cache >= kinds || context < 1 || context > model->config.context)
    return BG_E_ARGUMENT;
  state *s;
  const int32_t code = open_state(model, caches[cache], threads, context, &s);
  return code == BG_OK ? open_session(s, context, out) : code;
}

int32_t bg_session_share(bg_session *with, int32_t context, bg_session **out) {
  if (!with || !out)
    return BG_E_ARGUMENT;
  *out = NULL;
  if (context < 1 || context > with->state->model->config.context)
    return BG_E_ARGUMENT;
  atomic_fetch_add(&with->state->sessions, 1);
  return open_session(with->state, context, out);
}

void bg_session_close(bg_session *session) {
  if (!session)
    return;
  close_state(session->state);
  release(&session->arena);
  free(session);
}

int32_t bg_position(const bg_session *session) { return session ? session->position : BG_E_ARGUMENT; }

int32_t bg_rewind(bg_session *session, int32_t position) {
  if (!session || position < 0 || position > session->position)
    return BG_E_ARGUMENT;
  session->position = position;
  return BG_OK;
}
