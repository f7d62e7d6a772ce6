// forward.c: the forward pass. Read forward_chunk first: it is the model.
//
// A chunk of n tokens, of one sequence or of many, goes through the layers together; n == 1 takes the decode
// kernels (gemv), more the prefill kernels (gemm). Work is divided among threads by tokens (rows of
// activations), by panels of weight rows, by (run, head, block of positions), by rows of the output matrix.
// No division changes any result, nor do the sequences beside one.
#include "core/forward.h"

#include <string.h>
#include <time.h>

#include "core/attention_tasks.h"
#include "core/certified_head.h"
#include "core/delta_tasks.h"
#include "core/product.h"
#include "core/rope.h"
#include "core/sampler.h"
#include "core/ternary_head.h"

// ---- rows of buffers ------------------------------------------------------------------------------------

static float *x_of(const state *s, int32_t t) { return s->x + (size_t)t * s->hidden_row; }
static float *input_of(const state *s, int32_t thread) { return s->input + (size_t)thread * s->input_row; }

static uint8_t *operand_of(const state *s, int role, int32_t t) {
  return s->operand + s->operand_at[role] + (size_t)t * kernel_of(s, role)->operand_bytes;
}

// The matrices of a stage of this layer.
static const bg_stage *stage_of(const state *s, int stage) { return &bg_stages[stage][layer_of(s)->kind]; }
static int32_t is_delta(const state *s) { return layer_of(s)->kind == LAYER_DELTA; }

// ---- the step timer -------------------------------------------------------------------------------------

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void start_timer(state *s) {
  if (s->profile.on)
    s->profile.step_began = nanoseconds();
}

// A step (enum bg_step) has ended, the next begins.
static void end_step(state *s, int step) {
  profile *p = &s->profile;
  if (!p->on)
    return;
  const int64_t now = nanoseconds();
  p->times[step].nanoseconds += now - p->step_began;
  p->times[step].calls++;
  p->step_began = now;
}

// ---- work over tokens -----------------------------------------------------------------------------------

typedef void token_step(state *s, int32_t t, int32_t thread);
typedef struct {
  state *state;
  token_step *step;
} token_work;

static void token_task(void *arg, int32_t thread, int32_t threads) {
  token_work *w = arg;
  const int32_t n = w->state->chunk.n, end = range_begin(n, thread + 1, threads);
  for (int32_t t = range_begin(n, thread, threads); t < end; t++)
    w->step(w->state, t, thread);
}

// A step of every token; threads divide them.
static void each_token(state *s, token_step *step, int timed_as) {
  token_work w = {s, step};
  if (s->chunk.n == 1)
    step(s, 0, 0);
  else
    pool_run(s->pool, token_task, &w);
  end_step(s, timed_as);
}

// x = H (s x) or, inverse, s (H x), where the model has such a rotation; width: WIDTH_* of x
static void rotate(const state *s, int width, float *x, int inverse) {
  const bg_model *m = s->model;
  const bg_header *c = &m->config;
  const int32_t widths[WIDTHS] = {c->hidden, c->heads * c->head_dim, c->intermediate, m->delta.inner};
  if (c->hadamard_block)
    s->ops->hadamard(x, m->signs[width], widths[width], c->hadamard_block, inverse);
}

// x = embedding row; cos and sin of the position
static void embed(state *s, int32_t t, int32_t thread) {
  (void)thread;
  const bg_header *c = &s->model->config;
  const int32_t d = c->head_dim, pairs = c->rope_dims / 2;
  const run *r = run_of(s, t);
  embedding_row(s, r->tokens[t - r->row0], x_of(s, t));
  rotate(s, WIDTH_HIDDEN, x_of(s, t), 1);
  for (int32_t windowed = 0; windowed < (c->window ? 2 : 1); windowed++) {
    const float *frequency = s->model->rope_frequency[windowed], by = windowed ? 1 : c->rope_magnitude;
    float *cos = s->cos + t * d + windowed * d / 2, *sin = s->sin + t * d + windowed * d / 2;
    for (int32_t i = 0; i < pairs; i++) {
      rope_cos_sin((float)position_of(s, t) * frequency[i], cos + i, sin + i);
      cos[i] *= by;
      sin[i] *= by;
    }
  }
}

// y = norm(x) of n elements, where the layer has such a norm
static void normalise(const state *s, int norm, const float *x, int32_t n, float *y) {
  if (layer_of(s)->norms[norm])
    s->ops->rmsnorm(x, layer_of(s)->norms[norm], n, s->model->config.norm_eps, y);
}

// q = x rounded as a kernel reads it; returns what its products are to be divided by: the factors of a kernel
// with groups are in the row of q and in the matrix, and 1 remains.
static float quantise(const state *s, const bg_kernel *k, const float *x, int8_t *q) {
  if (!k->group)
    return s->ops->quantise(x, k->k, q);
  quantise_groups(s->ops, k, x, q);
  return 1.0f;
}

static int width_of(const state *s, int stage) {
  const int widths[STAGES] = {WIDTH_HIDDEN, is_delta(s) ? WIDTH_DELTA : WIDTH_CONTEXT, WIDTH_HIDDEN,
                              WIDTH_INTERMEDIATE};
  return widths[stage];
}

// For each matrix of a stage: quantised, input_scale = quantise(row); operand = the same as its kernel wants
// it. The row is rotated first, in place. A matrix may have a norm of its own; then the row is in input, which has
// room for another behind it.
static void quantise_for(state *s, int stage, int32_t t, int32_t thread, float *row) {
  const bg_stage *of = stage_of(s, stage);
  rotate(s, width_of(s, stage), row, 0);
  for (int32_t i = 0; i < of->n; i++) {
    const int role = of->matrices[i].role, norm = of->matrices[i].norm;
    const bg_kernel *k = kernel_of(s, role);
    int8_t *q = s->quantised + (size_t)thread * s->quantised_row;
    const float *input = row;
    if (norm >= 0) {
      float *normed = input_of(s, thread) + s->hidden_row;
      normalise(s, norm, row, k->k, normed);
      input = normed;
    }
    s->input_scale[t * BG_ROLES + role] = quantise(s, k, input, q);
    k->pack_activations(q, 1, operand_of(s, role, t));
  }
}

// x += part's rows, normed where the layer has such a norm, times the model's scale
static void add_to_stream(state *s, int part, int post_norm, int32_t t, int32_t thread) {
  const int32_t n = s->model->config.hidden;
  const float scale = s->model->config.residual_scale;
  float *x = x_of(s, t), *h = input_of(s, thread);
  if (!layer_of(s)->norms[post_norm] && scale == 1) {
    s->rows->add_dequantised(products_of(s, part, t), n, factor(s, part, t), x);
    return;
  }
  s->rows->dequantise(products_of(s, part, t), n, factor(s, part, t), h);
  memset(h + n, 0, (size_t)(s->hidden_row - n) * sizeof *h);
  normalise(s, post_norm, h, n, h);
  for (int32_t i = 0; i < n; i++)
    x[i] += h[i] * scale;
}

// input = norm(x), for q, k and v
static void enter_attention(state *s, int32_t t, int32_t thread) {
  normalise(s, NORM_ATTENTION, x_of(s, t), s->model->config.hidden, input_of(s, thread));
  quantise_for(s, BG_QKV, t, thread, input_of(s, thread));
}

static void normalise_heads(const state *s, float *q, float *k) {
  const bg_header *c = &s->model->config;
  s->ops->rmsnorm_heads(q, c->heads, c->head_dim, layer_of(s)->norms[NORM_Q], c->norm_eps);
  s->ops->rmsnorm_heads(k, c->kv_heads, c->head_dim, layer_of(s)->norms[NORM_K], c->norm_eps);
}

// query = rope(norm(q)), or norm(rope(q)); cache <- the same of k, v
static void split_heads(state *s, int32_t t, int32_t thread) {
  const bg_header *c = &s->model->config;
  const int32_t d = c->head_dim, kv = c->kv_heads * d,
                angles = t * d + (s->chunk.window < INT32_MAX ? d / 2 : 0);
  const float *cos = s->cos + angles, *sin = s->sin + angles;
  float *q = query_of(s, t), *k = input_of(s, thread), *v = k + kv;
  for (int32_t head = 0; head < c->heads; head++) // their gates lie between the queries
    s->rows->dequantise(products_of(s, PART_Q, t) + head * d * (1 + c->attention_gate), d,
                        factor(s, PART_Q, t), q + head * d);
  s->rows->dequantise(products_of(s, PART_K, t), kv, factor(s, PART_K, t), k);
  s->rows->dequantise(products_of(s, PART_V, t), kv, factor(s, PART_V, t), v);
  if (c->qk_norm && !c->qk_norm_after_rope)
    normalise_heads(s, q, k);
  void (*rope)(float *, int32_t, int32_t, int32_t, const float *, const float *) =
      c->rope_interleaved ? s->ops->rope_pairs : s->ops->rope_halves;
  rope(q, c->heads, d, c->rope_dims, cos, sin);
  rope(k, c->kv_heads, d, c->rope_dims, cos, sin);
  if (c->qk_norm_after_rope)
    normalise_heads(s, q, k);
  const bg_session *of = run_of(s, t)->session;
  for (int32_t head = 0; head < c->kv_heads; head++)
    s->attention->write(k + head * d, v + head * d, d, position_of(s, t), k_cache(of, head),
                        v_cache(of, head));
}

// query = the heads' contexts, times sigmoid(gate); the norm over all of them
static void leave_attention(state *s, int32_t t, int32_t thread) {
  const bg_header *c = &s->model->config;
  const int32_t d = c->head_dim;
  float *context = query_of(s, t);
  merge_blocks(s, t);
  for (int32_t head = 0; c->attention_gate && head < c->heads; head++)
    s->rows->gate_sigmoid(products_of(s, PART_Q, t) + (2 * head + 1) * d, d, factor(s, PART_Q, t),
                          context + head * d);
  normalise(s, NORM_O_IN, context, c->heads * c->head_dim, context);
  quantise_for(s, BG_O, t, thread, context);
}

// final_states = norm(x), for decay and beta; input = the same, for queries, keys, values and their gates
static void enter_delta(state *s, int32_t t, int32_t thread) {
  float *normed = s->final_states + (size_t)t * s->hidden_row, *input = input_of(s, thread);
  normalise(s, NORM_ATTENTION, x_of(s, t), s->model->config.hidden, normed);
  memcpy(input, normed, (size_t)s->hidden_row * sizeof *input);
  quantise_for(s, BG_QKV, t, thread, input);
}

// Where a value head is in DELTA_OUT's input.
static int32_t place_of(const bg_header *c, int32_t head) {
  const int32_t readers = c->delta_value_heads / c->delta_key_heads; // of a key head
  return c->hadamard_regrouped ? head % c->delta_key_heads * readers + head / c->delta_key_heads : head;
}

// input = the norm of each value head's output, times silu(gate)
static void leave_delta(state *s, int32_t t, int32_t thread) {
  const bg_header *c = &s->model->config;
  const int32_t d = c->delta_value_dim, inner = s->model->delta.inner;
  const float *v = mixed_of(s, t) + 2 * s->model->delta.keys, f = factor(s, PART_DELTA_Z, t);
  float *h = input_of(s, thread);
  memset(h + inner, 0, (size_t)(padded(inner) - inner) * sizeof *h);
  for (int32_t head = 0; head < c->delta_value_heads; head++) {
    float *to = h + place_of(c, head) * d;
    memcpy(to, v + head * d, (size_t)d * sizeof *to);
    s->ops->rmsnorm_heads(to, 1, d, layer_of(s)->norms[NORM_DELTA], c->norm_eps);
    s->rows->gate_silu(products_of(s, PART_DELTA_Z, t) + head * d, d, f, to);
  }
  quantise_for(s, BG_O, t, thread, h);
}

// x += o; input = norm(x), for gate and up
static void enter_ffn(state *s, int32_t t, int32_t thread) {
  add_to_stream(s, is_delta(s) ? PART_DELTA_OUT : PART_O, NORM_POST_ATTENTION, t, thread);
  normalise(s, NORM_FFN, x_of(s, t), s->model->config.hidden, input_of(s, thread));
  quantise_for(s, BG_GATE_UP, t, thread, input_of(s, thread));
}

// input = norm(act(gate) up), for down
static void activate(state *s, int32_t t, int32_t thread) {
  const bg_header *c = &s->model->config;
  void (*const act[])(const int32_t *, const int32_t *, int32_t, float, float,
                      float *) = {s->rows->silu, s->rows->relu2, s->rows->gelu};
  float *h = input_of(s, thread);
  act[c->activation](products_of(s, PART_GATE, t), products_of(s, PART_UP, t), c->intermediate,
                     factor(s, PART_GATE, t), factor(s, PART_UP, t), h);
  normalise(s, NORM_DOWN_IN, h, c->intermediate, h);
  quantise_for(s, BG_DOWN, t, thread, h);
}

// x += down
static void leave_ffn(state *s, int32_t t, int32_t thread) {
  add_to_stream(s, PART_DOWN, NORM_POST_FFN, t, thread);
}

// final_states [n_states][hidden_row] = norm(x) / logit_divisor, rotated, of the rows whose logits, states or choices
// are wanted; the caller's states are norm(x)
static void final_norm(state *s, int32_t t, int32_t thread) {
  (void)thread;
  const bg_header *c = &s->model->config;
  const int32_t i = s->chunk.state_of[t];
  if (i < 0)
    return;
  float *h = s->final_states + (size_t)i * s->hidden_row;
  s->ops->rmsnorm(x_of(s, t), s->model->output_norm, c->hidden, c->norm_eps, h);
  if (s->chunk.states)
    memcpy(s->chunk.states + (size_t)i * c->hidden, h, (size_t)c->hidden * sizeof *h);
  if (c->logit_divisor != 1)
    for (int32_t j = 0; j < c->hidden; j++)
      h[j] /= c->logit_divisor;
  rotate(s, WIDTH_HIDDEN, h, 0);
}

// ---- products -------------------------------------------------------------------------------------------

_Static_assert((int)BG_STEP_QKV == BG_QKV && (int)BG_STEP_O == BG_O && (int)BG_STEP_GATE_UP == BG_GATE_UP &&
                   (int)BG_STEP_DOWN == BG_DOWN,
               "a stage's step is its number");

// products int32 [n][m_pad] = W q, for each matrix of a stage
static void multiply(state *s, int stage) {
  const bg_stage *of = stage_of(s, stage);
  for (int32_t i = 0; i < of->n; i++) {
    const int role = of->matrices[i].role;
    product p = {kernel_of(s, role), layer_of(s)->packed[role],          operand_of(s, role, 0),
                 s->chunk.n,         s->products + s->products_at[role], s->kernel_scratch};
    pool_run(s->pool, product_task, &p);
  }
  const int of_delta[] = {BG_STEP_DELTA_IN, BG_STEP_DELTA_OUT};
  end_step(s, is_delta(s) && stage <= BG_O ? of_delta[stage] : stage);
}

// ---- choices --------------------------------------------------------------------------------------------

static void choose(state *s, const choice *c, const token_logits *of) {
  bg_choice *r = c->request;
  const int32_t token = sample(s, r->sampling, of, r->history, c->n_history, c->step);
  if (token >= 0)
    *c->chosen = token;
  else if (r->code == BG_OK)
    r->code = token;
}

// A token after each final state, CHOICES of them in a pass over the output matrix.
static void choose_tokens(state *s) {
  const chunk *c = &s->chunk;
  for (int32_t first = 0; first < c->n_states; first += CHOICES) {
    const int32_t n = c->n_states - first < CHOICES ? c->n_states - first : CHOICES;
    token_logits found[CHOICES];
    decisive_logits(s, first, n, found);
    for (int32_t i = 0; i < n; i++)
      choose(s, &c->choices[first + i], &found[i]);
    end_step(s, BG_STEP_HEAD);
  }
}

// ---- the forward pass -----------------------------------------------------------------------------------

// Positions that a token sees in a layer; INT32_MAX: all.
static int32_t window_of(const bg_header *c, int32_t layer) {
  return c->window && (layer + 1) % c->window_period ? c->window : INT32_MAX;
}

static void forward_attention(state *s) {
  each_token(s, enter_attention, BG_STEP_ENTER_ATTENTION);
  multiply(s, BG_QKV);
  each_token(s, split_heads, BG_STEP_SPLIT_HEADS);
  attend(s);
  end_step(s, BG_STEP_ATTENTION);
  each_token(s, leave_attention, BG_STEP_LEAVE_ATTENTION);
}

static void forward_delta(state *s) {
  each_token(s, enter_delta, BG_STEP_ENTER_DELTA);
  multiply_rates(s);
  end_step(s, BG_STEP_DELTA_RATES);
  multiply(s, BG_QKV);
  convolve(s);
  end_step(s, BG_STEP_CONVOLVE);
  pass_states(s);
  end_step(s, BG_STEP_DELTA);
  each_token(s, leave_delta, BG_STEP_LEAVE_DELTA);
}

static void forward_layer(state *s) {
  if (is_delta(s))
    forward_delta(s);
  else
    forward_attention(s);
  multiply(s, BG_O);
  each_token(s, enter_ffn, BG_STEP_ENTER_FFN);
  multiply(s, BG_GATE_UP);
  each_token(s, activate, BG_STEP_ACTIVATE);
  multiply(s, BG_DOWN);
  each_token(s, leave_ffn, BG_STEP_LEAVE_FFN);
}

void forward_chunk(state *s) {
  const bg_header *config = &s->model->config;
  chunk *c = &s->chunk;
  start_timer(s);
  plan_attention(s);
  each_token(s, embed, BG_STEP_EMBED);
  for (c->layer = 0; c->layer < config->layers; c->layer++) {
    c->window = window_of(config, c->layer);
    forward_layer(s);
  }
  leave_states(s);
  if (!c->n_states)
    return;
  each_token(s, final_norm, BG_STEP_FINAL_NORM);
  if (c->logits) {
    output_logits(s, s->final_states, c->n_states, c->logits);
    end_step(s, BG_STEP_HEAD);
  }
  if (c->chooses)
    choose_tokens(s);
}
