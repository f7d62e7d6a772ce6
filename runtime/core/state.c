// state.c: the buffers of sequences and of the state that they share.
#include "core/state.h"

#include <stdlib.h>

// ---- arenas ---------------------------------------------------------------------------------------------

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

// ---- the state ------------------------------------------------------------------------------------------

static int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }
static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

// Numbers of products, bytes of operand, bytes of each thread's scratch, that any stage needs.
typedef struct {
  size_t products, operand, scratch;
} stage_size;

static void place_stage(state *s, const bg_stage *of, stage_size *all) {
  size_t products = 0, operand = 0;
  for (int32_t i = 0; i < of->n; i++) {
    const int role = of->matrices[i].role;
    const bg_kernel *one = s->model->isa->gemv[role], *many = s->model->isa->gemm[role];
    s->products_at[role] = products;
    s->operand_at[role] = operand;
    products += (size_t)s->max_rows * (size_t)max_i32(one->m_pad, many->m_pad);
    operand += (size_t)s->max_rows * max_size(one->operand_bytes, many->operand_bytes);
    s->quantised_row = max_i32(s->quantised_row, (int32_t)round_up(bg_row_bytes(one), 64));
    all->scratch = max_size(all->scratch, max_size(one->scratch_bytes, many->scratch_bytes));
  }
  all->products = max_size(all->products, products);
  all->operand = max_size(all->operand, operand);
}

static int has_layers(const bg_model *m, int kind) {
  for (int32_t l = 0; l < m->config.layers; l++)
    if (m->layers[l].kind == kind)
      return 1;
  return 0;
}

// The matrices of a stage lie side by side in products and operand; the stages share them.
static stage_size place_products(state *s) {
  stage_size all = {0, 0, 0};
  for (int kind = 0; kind < LAYER_KINDS; kind++)
    for (int stage = 0; stage < STAGES && has_layers(s->model, kind); stage++)
      place_stage(s, &bg_stages[stage][kind], &all);
  if (s->model->ternary_head)
    all.scratch = max_size(all.scratch, max_size(s->model->isa->gemv[BG_HEAD]->scratch_bytes,
                                                 s->model->isa->gemm[BG_HEAD]->scratch_bytes));
  return all;
}

// What one head's convolution works on: the latest `taps` inputs.
static int32_t convolution_floats(const bg_model *m) {
  return m->config.delta_taps * max_i32(m->config.delta_key_dim, m->config.delta_value_dim);
}

static void allocate_delta(state *s) {
  if (!s->model->delta.layers)
    return;
  s->mixed = zeros(&s->arena, s->max_rows, (uint64_t)s->model->delta.channels * sizeof *s->mixed);
  s->rates = zeros(&s->arena, s->max_rows, rate_row(s) * sizeof *s->rates);
}

static void allocate_layers(state *s) {
  const bg_header *c = &s->model->config;
  const int32_t d = c->head_dim, rows = s->max_rows, threads = pool_threads(s->pool);
  s->hidden_row = padded(c->hidden);
  s->query_row = padded(c->heads * d);
  s->input_row = max_i32(max_i32((1 + c->input_norms) * s->hidden_row, padded(2 * c->kv_heads * d)),
                         padded(c->intermediate));
  s->input_row = max_i32(s->input_row, max_i32(padded(s->model->delta.inner), convolution_floats(s->model)));
  const stage_size size = place_products(s);
  arena *a = &s->arena;
  s->x = zeros(a, rows, s->hidden_row * sizeof *s->x);
  s->query = zeros(a, rows, s->query_row * sizeof *s->query);
  s->final_states = zeros(a, rows, s->hidden_row * sizeof *s->final_states);
  allocate_delta(s);
  s->input_scale = zeros(a, rows, BG_ROLES * sizeof *s->input_scale);
  s->operand = zeros(a, 1, size.operand);
  s->products = zeros(a, size.products, sizeof *s->products);
  s->cos = zeros(a, rows, d * sizeof *s->cos);
  s->sin = zeros(a, rows, d * sizeof *s->sin);
  s->input = zeros(a, threads, s->input_row * sizeof *s->input);
  s->quantised = zeros(a, threads, s->quantised_row);
  s->kernel_scratch = zeros(a, threads, size.scratch);
  s->attend_scratch = zeros(a, (uint64_t)threads * 2 * ATTEND_ROWS, partial_floats(d) * sizeof(float));
}

static void allocate_ternary_head(state *s) {
  const bg_kernel *one = s->model->isa->gemv[BG_HEAD], *many = s->model->isa->gemm[BG_HEAD];
  choosing *c = &s->choosing;
  arena *a = &s->arena;
  c->quantised = zeros(a, 1, bg_row_bytes(one));
  c->operand = zeros(a, CHOICES, max_size(one->operand_bytes, many->operand_bytes));
  c->screened = zeros(a, CHOICES, (uint64_t)max_i32(one->m_pad, many->m_pad) * sizeof *c->screened);
  c->rows = zeros(a, (uint64_t)pool_threads(s->pool) * UNPACKED_ROWS, s->hidden_row * sizeof *c->rows);
}

static void allocate_choosing(state *s) {
  const int32_t vocab = s->model->config.vocab;
  choosing *c = &s->choosing;
  arena *a = &s->arena;
  c->screen_row = (int32_t)round_up(s->hidden_row, SCREEN_COLUMNS);
  c->hidden_digits = zeros(a, 2 * CHOICES, c->screen_row);
  c->found = zeros(a, (uint64_t)pool_threads(s->pool) * CHOICES, sizeof *c->found);
  c->candidate_ids = zeros(a, CHOICES, MAX_CANDIDATES * sizeof *c->candidate_ids);
  c->candidate_logits = zeros(a, CHOICES, MAX_CANDIDATES * sizeof *c->candidate_logits);
  c->all_logits = zeros(a, CHOICES, vocab * sizeof *c->all_logits);
  c->scores = zeros(a, vocab, sizeof *c->scores);
  c->order = zeros(a, vocab, sizeof *c->order);
  if (s->model->ternary_head)
    allocate_ternary_head(s);
}

// Sizes are bounded by what bg_open admits: no product here overflows 64 bits.
static int32_t allocate_state(state *s) {
  allocate_layers(s);
  allocate_choosing(s);
  return complete(&s->arena);
}

int32_t state_open(const bg_model *model, const bg_attention_ops *attention, int32_t threads, int32_t context,
                   state **out) {
  state *s = calloc(1, sizeof *s);
  if (!s)
    return BG_E_MEMORY;
  s->model = model;
  s->ops = model->isa->ops;
  s->rows = model->isa->gemv[BG_O]->group ? s->ops->floats : s->ops->sums;
  s->attention = attention;
  s->sessions = 1;
  s->max_rows = context < LEAST_CHUNK ? LEAST_CHUNK : context < CHUNK ? context : CHUNK;
  int32_t code = pool_open(threads, &s->pool);
  if (code == BG_OK)
    code = allocate_state(s);
  if (code == BG_OK)
    *out = s;
  else
    state_release(s);
  return code;
}

void state_release(state *s) {
  if (atomic_fetch_sub(&s->sessions, 1) > 1)
    return;
  pool_close(s->pool);
  release(&s->arena);
  free(s);
}

// ---- sequences ------------------------------------------------------------------------------------------

static void allocate_delta_state(bg_session *session) {
  const bg_delta_sizes *sizes = &session->state->model->delta;
  delta_state *d = &session->delta;
  arena *a = &session->arena;
  const uint64_t logged = (uint64_t)sizes->layers * REWINDABLE;
  d->layer = sizes->state + sizes->tail;
  d->now = zeros(a, sizes->layers, d->layer * sizeof(float));
  d->base = zeros(a, sizes->layers, d->layer * sizeof(float));
  d->inputs = zeros(a, logged, (uint64_t)sizes->channels * sizeof(float));
  d->rates = zeros(a, logged, rate_row(session->state) * sizeof(float));
}

int32_t session_allocate(bg_session *session) {
  const state *s = session->state;
  const bg_header *c = &s->model->config;
  const uint64_t caches = (uint64_t)s->model->caches * c->kv_heads;
  session->attend_blocks = (session->context + ATTEND_BLOCK - 1) / ATTEND_BLOCK;
  const size_t positions = (size_t)session->attend_blocks * ATTEND_BLOCK;
  session->k_head =
      positions * (round_up(c->head_dim, I8_GROUP) * s->attention->width + s->attention->beside);
  session->v_head = positions * (padded(c->head_dim) * s->attention->width + s->attention->beside);
  session->k = zeros(&session->arena, caches, session->k_head);
  session->v = zeros(&session->arena, caches, session->v_head);
  session->partials = zeros(&session->arena, (uint64_t)SPREAD * c->heads * session->attend_blocks,
                            partial_floats(c->head_dim) * sizeof(float));
  if (s->model->delta.layers)
    allocate_delta_state(session);
  return complete(&session->arena);
}

void session_free(bg_session *session) {
  state_release(session->state);
  release(&session->arena);
  free(session);
}
