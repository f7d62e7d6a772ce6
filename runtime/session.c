// session.c: the forward pass. Read forward_chunk first: it is the model.
//
// A chunk of n tokens goes through the layers together; n == 1 takes the decode kernels (gemv), more the
// prefill kernels (gemm). Work is divided among threads by tokens (rows of activations), by panels of weight
// rows, by (head, block of positions), by rows of the output matrix; no division changes any result.
#include "session.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fpstate.h"
#include "product.h"
#include "rope.h"

enum { ATTEND_ROWS = 16 };       // query rows that share one pass over keys and values
enum { ATTEND_ALONE = 1 << 16 }; // multiply-adds of attention that are not worth waking a thread for

// ---- rows of buffers ------------------------------------------------------------------------------------

static const bg_layer *layer(const bg_session *s) { return &s->model->layers[s->layer]; }
static float *x_of(const bg_session *s, int32_t t) { return s->x + (size_t)t * s->hidden_row; }
static float *h_of(const bg_session *s, int32_t t) { return s->h + (size_t)t * s->wide_row; }
static float *query_of(const bg_session *s, int32_t t) { return s->query + (size_t)t * s->query_row; }

static const bg_kernel *kernel(const bg_session *s, int role) {
  return s->n == 1 ? s->model->isa->gemv[role] : s->model->isa->gemm[role];
}
static const int32_t *y_of(const bg_session *s, int role, int32_t t) {
  return s->y + (size_t)t * kernel(s, role)->m_pad;
}

// One head's cache in this layer.
static uint8_t *k_cache(const bg_session *s, int32_t kv_head) {
  return s->k + ((size_t)s->layer * s->model->config.kv_heads + kv_head) * s->k_head;
}
static uint8_t *v_cache(const bg_session *s, int32_t kv_head) {
  return s->v + ((size_t)s->layer * s->model->config.kv_heads + kv_head) * s->v_head;
}

// ---- profile --------------------------------------------------------------------------------------------

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

// A step has ended; the next begins.
static void lap(bg_session *s, int step) {
  if (!s->profiling)
    return;
  const int64_t now = nanoseconds();
  s->times[step].nanoseconds += now - s->lap_began;
  s->times[step].calls++;
  s->lap_began = now;
}

int32_t bg_profile(bg_session *s, int32_t on, bg_step_time *out) {
  if (!s)
    return BG_E_ARGUMENT;
  if (out)
    memcpy(out, s->times, sizeof s->times);
  if (on)
    memset(s->times, 0, sizeof s->times);
  s->profiling = on != 0;
  return BG_OK;
}

// ---- work over tokens -----------------------------------------------------------------------------------

typedef void token_step(bg_session *s, int32_t t);
typedef struct {
  bg_session *session;
  token_step *step;
} token_work;

static void token_share(void *arg, int32_t thread, int32_t threads) {
  token_work *w = arg;
  const int32_t n = w->session->n, end = share(n, thread + 1, threads);
  for (int32_t t = share(n, thread, threads); t < end; t++)
    w->step(w->session, t);
}

static void each_token(bg_session *s, token_step *step, int timed_as) {
  token_work w = {s, step};
  if (s->n == 1)
    step(s, 0);
  else
    pool_run(s->pool, token_share, &w);
  lap(s, timed_as);
}

// x = embedding row; cos and sin of the position
static void embed(bg_session *s, int32_t t) {
  const bg_header *c = &s->model->config;
  const int32_t half = c->head_dim / 2;
  s->ops->widen(s->model->embedding + (size_t)s->tokens[t] * s->hidden_row, s->hidden_row, x_of(s, t));
  for (int32_t i = 0; i < half; i++)
    rope_cos_sin((float)(s->position + t) * s->model->rope_frequency[i], &s->cos[t * half + i],
                 &s->sin[t * half + i]);
}

// q, s = quantise(row); operand = q as the role's kernel wants it
static void quantise_for(bg_session *s, int role, int32_t t, const float *row) {
  const bg_kernel *k = kernel(s, role);
  int8_t *q = s->q + (size_t)t * k->k;
  s->s[t] = s->ops->quantise(row, k->k, q);
  k->prepare(q, 1, s->operand + (size_t)t * k->operand_bytes);
}

// h = norm(x), for q, k and v
static void enter_attention(bg_session *s, int32_t t) {
  s->ops->rmsnorm(x_of(s, t), layer(s)->attn_norm, s->model->config.hidden, s->model->config.norm_eps,
                  h_of(s, t));
  quantise_for(s, BG_QKV, t, h_of(s, t));
}

// query = rope(q); cache <- rope(k), v
static void split_heads(bg_session *s, int32_t t) {
  const bg_header *c = &s->model->config;
  const int32_t d = c->head_dim, half = d / 2, heads = c->heads * d, kv = c->kv_heads * d;
  const float *scales = layer(s)->scales, *cos = s->cos + t * half, *sin = s->sin + t * half;
  const int32_t *y = y_of(s, BG_QKV, t);
  float *q = query_of(s, t), *k = h_of(s, t), *v = k + kv;
  s->ops->dequantise(y, heads, scales[SCALE_Q] / s->s[t], q);
  s->ops->dequantise(y + heads, kv, scales[SCALE_K] / s->s[t], k);
  s->ops->dequantise(y + heads + kv, kv, scales[SCALE_V] / s->s[t], v);
  void (*rope)(float *, int32_t, int32_t, const float *, const float *) =
      c->rope_interleaved ? s->ops->rope_pairs : s->ops->rope_halves;
  rope(q, c->heads, d, cos, sin);
  rope(k, c->kv_heads, d, cos, sin);
  for (int32_t head = 0; head < c->kv_heads; head++)
    s->attention->write(k + head * d, v + head * d, d, s->position + t, k_cache(s, head), v_cache(s, head));
}

// query now holds the heads' contexts; sub-norm, where the model has one, over all of them
static void leave_attention(bg_session *s, int32_t t) {
  const bg_header *c = &s->model->config;
  float *context = query_of(s, t);
  if (c->sub_norms)
    s->ops->rmsnorm(context, layer(s)->attn_sub_norm, c->heads * c->head_dim, c->norm_eps, context);
  quantise_for(s, BG_O, t, context);
}

// x += o; h = norm(x), for gate and up
static void enter_ffn(bg_session *s, int32_t t) {
  const bg_header *c = &s->model->config;
  s->ops->add_dequantised(y_of(s, BG_O, t), c->hidden, layer(s)->scales[SCALE_O] / s->s[t], x_of(s, t));
  s->ops->rmsnorm(x_of(s, t), layer(s)->ffn_norm, c->hidden, c->norm_eps, h_of(s, t));
  quantise_for(s, BG_GATE_UP, t, h_of(s, t));
}

// h = act(gate) up, sub-norm, for down
static void activate(bg_session *s, int32_t t) {
  const bg_header *c = &s->model->config;
  const float gate = layer(s)->scales[SCALE_GATE] / s->s[t], up = layer(s)->scales[SCALE_UP] / s->s[t];
  const int32_t *y = y_of(s, BG_GATE_UP, t);
  float *h = h_of(s, t);
  (c->activation ? s->ops->relu2 : s->ops->silu)(y, y + c->intermediate, c->intermediate, gate, up, h);
  if (c->sub_norms)
    s->ops->rmsnorm(h, layer(s)->ffn_sub_norm, c->intermediate, c->norm_eps, h);
  quantise_for(s, BG_DOWN, t, h);
}

// x += down
static void leave_ffn(bg_session *s, int32_t t) {
  s->ops->add_dequantised(y_of(s, BG_DOWN, t), s->model->config.hidden,
                          layer(s)->scales[SCALE_DOWN] / s->s[t], x_of(s, t));
}

// ---- products -------------------------------------------------------------------------------------------

_Static_assert((int)BG_STEP_QKV == BG_QKV && (int)BG_STEP_O == BG_O && (int)BG_STEP_GATE_UP == BG_GATE_UP &&
                   (int)BG_STEP_DOWN == BG_DOWN,
               "a product's step is its role");

// y int32 [n][m_pad] = W q
static void multiply(bg_session *s, int role) {
  const bg_layer *l = layer(s);
  const uint8_t *const packed[BG_ROLES] = {
      [BG_QKV] = l->qkv, [BG_O] = l->o, [BG_GATE_UP] = l->gate_up, [BG_DOWN] = l->down};
  product p = {kernel(s, role), packed[role], s->operand, s->n, s->y, s->work};
  pool_run(s->pool, product_share, &p);
  lap(s, role);
}

// ---- attention ------------------------------------------------------------------------------------------
// The queries that read one kv head are rows: row r is head kv_head * group + r % group of token r / group.

static int32_t group(const bg_session *s) { return s->model->config.heads / s->model->config.kv_heads; }
static float *query_row(const bg_session *s, int32_t kv_head, int32_t row) {
  return query_of(s, row / group(s)) +
         (size_t)(kv_head * group(s) + row % group(s)) * s->model->config.head_dim;
}

// parts[i] = the partial result of row row0 + i over the block at position `first`; each row sees some of it.
static void attend_block(const bg_session *s, int32_t kv_head, int32_t row0, int32_t rows, int32_t first,
                         float *const *parts) {
  const int32_t d = s->model->config.head_dim;
  const float scale = 1.0f / __builtin_sqrtf((float)d), *q[ATTEND_ROWS];
  int32_t ends[ATTEND_ROWS];
  for (int32_t i = 0; i < rows; i++) {
    const int32_t sees = s->position + (row0 + i) / group(s) + 1 - first;
    ends[i] = sees < ATTEND_BLOCK ? sees : ATTEND_BLOCK;
    q[i] = query_row(s, kv_head, row0 + i);
  }
  s->attention->block(q, ends, rows, d, scale, k_cache(s, kv_head), v_cache(s, kv_head), first, parts);
}

// Prefill: one unit of work is up to ATTEND_ROWS rows of a kv head, over all positions; blocks are merged as
// they come.
static void attend_rows(bg_session *s, int32_t kv_head, int32_t row0, int32_t rows, float *scratch) {
  const int32_t d = s->model->config.head_dim, last = s->position + (row0 + rows - 1) / group(s);
  float *sums[ATTEND_ROWS], *parts[ATTEND_ROWS];
  for (int32_t i = 0; i < rows; i++) {
    sums[i] = scratch + 2 * i * partial_floats(d);
    parts[i] = sums[i] + partial_floats(d);
  }
  attend_block(s, kv_head, row0, rows, 0, sums);
  for (int32_t first = ATTEND_BLOCK; first <= last; first += ATTEND_BLOCK) {
    int32_t skip = 0; // rows of tokens before this block
    while (s->position + (row0 + skip) / group(s) < first)
      skip++;
    attend_block(s, kv_head, row0 + skip, rows - skip, first, parts);
    for (int32_t i = skip; i < rows; i++)
      s->attention->merge(sums[i], parts[i - skip], d);
  }
  for (int32_t i = 0; i < rows; i++)
    s->attention->finish(sums[i], d, query_row(s, kv_head, row0 + i));
}

static void prefill_share(void *arg, int32_t thread, int32_t threads) {
  bg_session *s = arg;
  const int32_t rows = s->n * group(s), kv_heads = s->model->config.kv_heads;
  float *scratch = s->scratch + (size_t)thread * 2 * ATTEND_ROWS * partial_floats(s->model->config.head_dim);
  // Later rows see more positions: threads take turns instead of stretches.
  for (int32_t unit = thread; unit < kv_heads * ((rows + ATTEND_ROWS - 1) / ATTEND_ROWS); unit += threads) {
    const int32_t row0 = unit / kv_heads * ATTEND_ROWS;
    attend_rows(s, unit % kv_heads, row0, rows - row0 < ATTEND_ROWS ? rows - row0 : ATTEND_ROWS, scratch);
  }
}

static float *partial(const bg_session *s, int32_t head, int32_t block) {
  return s->partials + ((size_t)head * s->attend_blocks + block) * partial_floats(s->model->config.head_dim);
}

// Decode: one unit is one block of a kv head, so that a long context keeps many threads busy.
static void decode_share(void *arg, int32_t thread, int32_t threads) {
  bg_session *s = arg;
  const int32_t rows = group(s), blocks = s->position / ATTEND_BLOCK + 1,
                units = s->model->config.kv_heads * blocks;
  for (int32_t unit = share(units, thread, threads); unit < share(units, thread + 1, threads); unit++) {
    const int32_t kv_head = unit / blocks, block = unit % blocks;
    for (int32_t row0 = 0; row0 < rows; row0 += ATTEND_ROWS) {
      const int32_t some = rows - row0 < ATTEND_ROWS ? rows - row0 : ATTEND_ROWS;
      float *parts[ATTEND_ROWS];
      for (int32_t i = 0; i < some; i++)
        parts[i] = partial(s, kv_head * rows + row0 + i, block);
      attend_block(s, kv_head, row0, some, block * ATTEND_BLOCK, parts);
    }
  }
}

static void merge_blocks(bg_session *s) {
  const int32_t d = s->model->config.head_dim, blocks = s->position / ATTEND_BLOCK + 1;
  for (int32_t head = 0; head < s->model->config.heads; head++) {
    for (int32_t b = 1; b < blocks; b++)
      s->attention->merge(partial(s, head, 0), partial(s, head, b), d);
    s->attention->finish(partial(s, head, 0), d, s->query + (size_t)head * d);
  }
}

// query [n][heads][d] <- softmax(query k^T / sqrt(d)) v, causal
static void attend(bg_session *s) {
  if (s->n > 1) {
    pool_run(s->pool, prefill_share, s);
    return;
  }
  const int64_t work = (int64_t)(s->position + 1) * s->model->config.heads * s->model->config.head_dim * 2;
  if (work < ATTEND_ALONE)
    decode_share(s, 0, 1);
  else
    pool_run(s->pool, decode_share, s);
  merge_blocks(s);
}

// ---- the output matrix ----------------------------------------------------------------------------------

static void head_share(void *arg, int32_t thread, int32_t threads) {
  const bg_session *s = arg;
  const bg_model *m = s->model;
  const int32_t row0 = share(m->config.vocab, thread, threads),
                row1 = share(m->config.vocab, thread + 1, threads);
  const float *x = x_of(s, s->n - s->n_logits);
  if (m->head_i8)
    s->ops->head->i8(m->head_i8, m->head_scales, s->hidden_row, row0, row1, x, s->n_logits, s->logits,
                     (size_t)m->config.vocab);
  else
    s->ops->head->f16(m->head_f16, s->hidden_row, row0, row1, x, s->n_logits, s->logits,
                      (size_t)m->config.vocab);
}

static void final_norm(bg_session *s, int32_t t) {
  const bg_header *c = &s->model->config;
  if (t >= s->n - s->n_logits)
    s->ops->rmsnorm(x_of(s, t), s->model->output_norm, c->hidden, c->norm_eps, x_of(s, t));
}

// ---- the forward pass -----------------------------------------------------------------------------------

static void forward_chunk(bg_session *s) {
  if (s->profiling)
    s->lap_began = nanoseconds();
  each_token(s, embed, BG_STEP_EMBED);
  for (s->layer = 0; s->layer < s->model->config.layers; s->layer++) {
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
    pool_run(s->pool, head_share, s);
    lap(s, BG_STEP_HEAD);
  }
}

int32_t bg_forward(bg_session *s, const int32_t *tokens, int32_t n, float *logits, int32_t all) {
  if (!s || !tokens || n < 1)
    return BG_E_ARGUMENT;
  if (n > s->context - s->position)
    return BG_E_CONTEXT;
  for (int32_t i = 0; i < n; i++)
    if (tokens[i] < 0 || tokens[i] >= s->model->config.vocab)
      return BG_E_TOKEN;
  const uint64_t callers = fp_default();
  for (int32_t done = 0; done < n; done += s->n) {
    s->n = n - done < CHUNK ? n - done : CHUNK;
    s->tokens = tokens + done;
    s->n_logits = !logits ? 0 : all ? s->n : done + s->n == n;
    s->logits = all && logits ? logits + (size_t)done * s->model->config.vocab : logits;
    forward_chunk(s);
    s->position += s->n;
  }
  fp_set(callers);
  return BG_OK;
}

// ---- opening and closing --------------------------------------------------------------------------------

// Zeroed, 64-byte aligned, freed with the session; NULL (and so at the end an error) when memory is short.
static void *zeros(bg_session *s, uint64_t count, uint64_t size) {
  const uint64_t bytes = count * size + 64;
  char *raw = bytes <= SIZE_MAX / 2 ? calloc(1, (size_t)bytes) : NULL;
  s->owned[s->n_owned++] = raw;
  return raw ? raw + (64 - (uintptr_t)raw % 64) % 64 : NULL;
}

static int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }

// Sizes are bounded by what bg_open admits: no product here overflows 64 bits.
static int32_t allocate(bg_session *s) {
  const bg_header *c = &s->model->config;
  const int32_t n = s->context < CHUNK ? s->context : CHUNK, d = c->head_dim;
  s->hidden_row = padded(c->hidden);
  s->query_row = padded(c->heads * d);
  s->wide_row = most(most(s->hidden_row, padded(2 * c->kv_heads * d)), padded(c->intermediate));
  s->attend_blocks = (s->context + ATTEND_BLOCK - 1) / ATTEND_BLOCK;
  s->k_head = (size_t)s->attend_blocks * ATTEND_BLOCK * d * s->attention->width;
  s->v_head = (size_t)s->attend_blocks * ATTEND_BLOCK * padded(d) * s->attention->width;
  size_t work = 0;
  for (int role = 0; role < BG_ROLES; role++) {
    const bg_kernel *pair[] = {s->model->isa->gemv[role], s->model->isa->gemm[role]};
    for (int i = 0; i < 2; i++) {
      s->q_row = most(s->q_row, pair[i]->k);
      s->y_row = most(s->y_row, pair[i]->m_pad);
      if (pair[i]->operand_bytes > s->operand_row)
        s->operand_row = pair[i]->operand_bytes;
      if (pair[i]->scratch_bytes > work)
        work = pair[i]->scratch_bytes;
    }
  }
  const uint64_t caches = (uint64_t)c->layers * c->kv_heads;
  const uint64_t part = partial_floats(d) * sizeof(float);
  s->x = zeros(s, n, s->hidden_row * sizeof *s->x);
  s->query = zeros(s, n, s->query_row * sizeof *s->query);
  s->h = zeros(s, n, s->wide_row * sizeof *s->h);
  s->q = zeros(s, n, s->q_row);
  s->s = zeros(s, n, sizeof *s->s);
  s->operand = zeros(s, n, s->operand_row);
  s->y = zeros(s, n, s->y_row * sizeof *s->y);
  s->work = zeros(s, pool_threads(s->pool), work);
  s->cos = zeros(s, n, d / 2 * sizeof *s->cos);
  s->sin = zeros(s, n, d / 2 * sizeof *s->sin);
  s->k = zeros(s, caches, s->k_head);
  s->v = zeros(s, caches, s->v_head);
  s->partials = zeros(s, (uint64_t)c->heads * s->attend_blocks, part);
  s->scratch = zeros(s, (uint64_t)pool_threads(s->pool) * 2 * ATTEND_ROWS, part);
  s->scores = zeros(s, c->vocab, sizeof *s->scores);
  s->order = zeros(s, c->vocab, sizeof *s->order);
  for (int32_t i = 0; i < s->n_owned; i++)
    if (!s->owned[i])
      return BG_E_MEMORY;
  return BG_OK;
}

static int32_t open_session(const bg_model *model, const bg_attention_ops *attention, int32_t threads,
                            int32_t context, bg_session **out) {
  if (context < 1 || context > model->config.context)
    return BG_E_ARGUMENT;
  bg_session *s = calloc(1, sizeof *s);
  if (!s)
    return BG_E_MEMORY;
  s->model = model;
  s->ops = model->isa->ops;
  s->attention = attention;
  s->context = context;
  int32_t code = pool_open(threads, &s->pool);
  if (code == BG_OK)
    code = allocate(s);
  if (code == BG_OK)
    *out = s;
  else
    bg_session_close(s);
  return code;
}

int32_t bg_session_open(bg_model *model, int32_t threads, int32_t context, int32_t cache, bg_session **out) {
  if (!model || !out)
    return BG_E_ARGUMENT;
  *out = NULL;
  if (cache != BG_CACHE_F16 && cache != BG_CACHE_F32)
    return BG_E_ARGUMENT;
  const bg_ops *ops = model->isa->ops;
  return open_session(model, cache == BG_CACHE_F16 ? ops->attention_f16 : ops->attention_f32, threads, context, out);
}

void bg_session_close(bg_session *s) {
  if (!s)
    return;
  pool_close(s->pool);
  for (int32_t i = 0; i < s->n_owned; i++)
    free(s->owned[i]);
  free(s);
}

int32_t bg_position(const bg_session *s) { return s ? s->position : BG_E_ARGUMENT; }

int32_t bg_rewind(bg_session *s, int32_t position) {
  if (!s || position < 0 || position > s->position)
    return BG_E_ARGUMENT;
  s->position = position;
  return BG_OK;
}
