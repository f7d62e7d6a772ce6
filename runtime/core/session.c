// session.c: the public calls on sequences. What they append is cut into chunks, and each goes
// through the model.
#include <stdlib.h>
#include <string.h>

#include "core/delta_tasks.h"
#include "core/forward.h"
#include "core/fpstate.h"
#include "core/sampler.h"

// ---- opening and closing --------------------------------------------------------------------------------

// A session takes over a reference to its state, also where it cannot be opened.
static int32_t open_session(state *s, int32_t context, bg_session **out) {
  bg_session *session = calloc(1, sizeof *session);
  if (!session) {
    state_release(s);
    return BG_E_MEMORY;
  }
  session->state = s;
  session->context = context;
  const int32_t code = session_allocate(session);
  if (code == BG_OK)
    *out = session;
  else
    session_free(session);
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
  const int32_t code = state_open(model, caches[cache], threads, context, &s);
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
  if (session)
    session_free(session);
}

int32_t bg_position(const bg_session *session) { return session ? session->position : BG_E_ARGUMENT; }

// Back to an earlier position, of a state that can.
static int32_t go_back(bg_session *session, int32_t position) {
  const uint64_t callers = fp_default();
  const int32_t code = delta_rewind(session, position);
  fp_set(callers);
  if (code == BG_OK)
    session->position = position;
  return code;
}

int32_t bg_rewind(bg_session *session, int32_t position) {
  if (!session || position < 0 || position > session->position)
    return BG_E_ARGUMENT;
  return go_back(session, position);
}

// ---- the cache's bytes ----------------------------------------------------------------------------------

// Bytes of one position in one head: keys and values.
static size_t row_bytes(const bg_session *of) {
  const bg_attention_ops *a = of->state->attention;
  return 2 * ((size_t)of->state->model->config.head_dim * a->width + a->beside);
}

static size_t position_bytes(const bg_session *of) {
  const bg_header *c = &of->state->model->config;
  return row_bytes(of) * (size_t)of->state->model->caches * (size_t)c->kv_heads;
}

// Copy positions `first` and on out of the cache or, with `in`, into it.
static void copy_positions(const bg_session *of, uint8_t *positions, int in, int32_t first, int32_t n) {
  const bg_header *c = &of->state->model->config;
  const size_t heads = (size_t)of->state->model->caches * (size_t)c->kv_heads, row = row_bytes(of);
  for (size_t head = 0; head < heads; head++)
    for (int32_t i = 0; i < n; i++)
      of->state->attention->copy(positions + ((size_t)i * heads + head) * row, in, c->head_dim, first + i,
                                 of->k + head * of->k_head, of->v + head * of->v_head);
}

int64_t bg_position_bytes(const bg_session *session) {
  return session ? (int64_t)position_bytes(session) : BG_E_ARGUMENT;
}

int32_t bg_session_save(const bg_session *session, int32_t first, int32_t n, uint8_t *positions) {
  if (!session || !positions || first < 0 || n < 0 || n > session->position - first)
    return BG_E_ARGUMENT;
  copy_positions(session, positions, 0, first, n);
  return BG_OK;
}

int32_t bg_session_load(bg_session *session, int32_t n, const uint8_t *positions) {
  if (!session || !positions || n < 0)
    return BG_E_ARGUMENT;
  if (n > session->context - session->position)
    return BG_E_CONTEXT;
  copy_positions(session, (uint8_t *)positions, 1, session->position, n);
  session->position += n;
  session->delta.awaits |= n > 0 && session->state->model->delta.layers;
  return BG_OK;
}

int64_t bg_state_bytes(const bg_session *session) {
  return session ? (int64_t)delta_bytes(session) : BG_E_ARGUMENT;
}

int32_t bg_state_save(const bg_session *session, uint8_t *bytes) {
  if (!session || !bytes)
    return BG_E_ARGUMENT;
  if (session->delta.awaits)
    return BG_E_STATE;
  if (delta_bytes(session))
    memcpy(bytes, delta_now(session), delta_bytes(session));
  return BG_OK;
}

int32_t bg_state_load(bg_session *session, int32_t position, const uint8_t *bytes) {
  if (!session || !bytes || position < 0 || position > session->position)
    return BG_E_ARGUMENT;
  session->position = position;
  if (delta_bytes(session))
    delta_load(session, bytes);
  return BG_OK;
}

// ---- what was measured ----------------------------------------------------------------------------------

int32_t bg_profile(bg_session *session, int32_t on, bg_step_time *out) {
  if (!session)
    return BG_E_ARGUMENT;
  profile *p = &session->state->profile;
  if (out)
    memcpy(out, p->times, sizeof p->times);
  if (on)
    memset(p->times, 0, sizeof p->times);
  p->on = on != 0;
  return BG_OK;
}

int64_t bg_rescored(const bg_session *session) {
  return session ? session->state->choosing.rescored : BG_E_ARGUMENT;
}

// ---- appending tokens -----------------------------------------------------------------------------------

// What a call gives of the last `last` tokens of each session; or, where it has requests, of as many as each
// chooses after.
typedef struct {
  float *logits;       // [..][vocab], or NULL
  float *states;       // [..][hidden] after the last norm, or NULL
  bg_choice *requests; // [sessions], or NULL; those with an error are passed over
  int32_t *chosen;     // [..] the tokens that follow
  int32_t last;
} wanted;

// What is left to append to one session.
typedef struct {
  bg_session *session;
  const int32_t *tokens; // [left]
  int32_t left, last;    // of the last ones something is wanted
  bg_choice *request;
  int32_t *chosen; // [request->count]
} sequence;

// The choice after the token that is followed by left - 1 others.
static choice choice_of(const sequence *of, int32_t left) {
  bg_choice *r = of->request;
  const int32_t nth = r->count - left;
  return (choice){r, r->n_history - left + 1, r->step + (uint64_t)nth, of->chosen + nth};
}

// Append to the chunk as many of a sequence's tokens as it takes.
static void fill_chunk(state *s, sequence *from) {
  chunk *c = &s->chunk;
  const int32_t room = s->max_rows - c->n, n = from->left < room ? from->left : room;
  c->runs[c->n_runs] = (run){.session = from->session, .tokens = from->tokens, .row0 = c->n, .n = n};
  for (int32_t row = c->n; row < c->n + n; row++, from->left--) {
    const int32_t i = from->left <= from->last ? c->n_states++ : -1;
    c->run_of[row] = c->n_runs;
    c->state_of[row] = i;
    if (i >= 0 && from->request)
      c->choices[i] = choice_of(from, from->left);
  }
  from->tokens += n;
  c->n_runs++;
  c->n += n;
}

static void forward_and_advance(state *s) {
  chunk *c = &s->chunk;
  forward_chunk(s);
  for (int32_t i = 0; i < c->n_runs; i++)
    c->runs[i].session->position += c->runs[i].n;
  if (c->logits)
    c->logits += (size_t)c->n_states * s->model->config.vocab;
  if (c->states)
    c->states += (size_t)c->n_states * s->model->config.hidden;
  c->n = c->n_runs = c->n_states = 0;
}

static void forward_sequence(state *s, sequence *of) {
  while (of->left) {
    fill_chunk(s, of);
    if (s->chunk.n == s->max_rows)
      forward_and_advance(s);
  }
}

// Append lengths[i] tokens to each session, for what is wanted.
static void append(bg_session *const *sessions, int32_t count, const int32_t *tokens, const int32_t *lengths,
                   const wanted *want) {
  const uint64_t callers = fp_default();
  state *s = sessions[0]->state;
  int32_t *chosen = want->chosen;
  s->chunk.logits = want->logits;
  s->chunk.states = want->states;
  s->chunk.chooses = want->requests != NULL;
  for (int32_t i = 0; i < count; tokens += lengths[i++]) {
    bg_choice *r = want->requests ? &want->requests[i] : NULL;
    sequence of = {sessions[i], tokens, lengths[i], r ? r->count : want->last, r, chosen};
    if (!r || r->code == BG_OK) {
      delta_begin(sessions[i], lengths[i]);
      forward_sequence(s, &of);
    }
    if (r && r->count > 0)
      chosen += r->count;
  }
  if (s->chunk.n)
    forward_and_advance(s);
  fp_set(callers);
}

// Whether this is a batch: sessions that share and differ, and tokens for each.
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
  return BG_OK;
}

// Whether n tokens can be appended to a session.
static int32_t check_tokens(const bg_session *session, const int32_t *tokens, int32_t n) {
  if (session->delta.awaits)
    return BG_E_STATE;
  if (n > session->context - session->position)
    return BG_E_CONTEXT;
  for (int32_t i = 0; i < n; i++)
    if (tokens[i] < 0 || tokens[i] >= session->state->model->config.vocab)
      return BG_E_TOKEN;
  return BG_OK;
}

// Append all or, where a session has an error, nothing.
static int32_t append_all(bg_session *const *sessions, int32_t count, const int32_t *tokens,
                          const int32_t *lengths, const wanted *want) {
  int32_t code = check_batch(sessions, count, tokens, lengths);
  const int32_t *at = tokens;
  for (int32_t i = 0; i < count && code == BG_OK; at += lengths[i++])
    code = check_tokens(sessions[i], at, lengths[i]);
  if (code != BG_OK)
    return code;
  append(sessions, count, tokens, lengths, want);
  for (int32_t i = 0; i < count; i++)
    delta_keep(sessions[i]);
  return BG_OK;
}

int32_t bg_forward_batch(bg_session *const *sessions, int32_t count, const int32_t *tokens,
                         const int32_t *lengths, float *logits, int32_t all) {
  const wanted want = {.logits = logits, .last = !logits ? 0 : all ? INT32_MAX : 1};
  return append_all(sessions, count, tokens, lengths, &want);
}

int32_t bg_states_batch(bg_session *const *sessions, int32_t count, const int32_t *tokens,
                        const int32_t *lengths, float *states, int32_t all) {
  const wanted want = {.states = states, .last = all ? INT32_MAX : 1};
  return states ? append_all(sessions, count, tokens, lengths, &want) : BG_E_ARGUMENT;
}

int32_t bg_forward(bg_session *session, const int32_t *tokens, int32_t n, float *logits, int32_t all) {
  return bg_forward_batch(&session, 1, tokens, &n, logits, all);
}

// ---- choosing tokens ------------------------------------------------------------------------------------

// Whether a request makes sense beside n appended tokens.
static int32_t check_request(const bg_choice *r, int32_t n) {
  if (r->count == 0)
    return BG_OK;
  return r->count > 0 && r->count <= n && r->sampling && r->history && r->n_history >= r->count &&
                 sampling_is_sane(r->sampling)
             ? BG_OK
             : BG_E_ARGUMENT;
}

int32_t bg_next_batch(bg_session *const *sessions, int32_t count, const int32_t *tokens,
                      const int32_t *lengths, bg_choice *requests, int32_t *chosen) {
  if (!requests || !chosen)
    return BG_E_ARGUMENT;
  const int32_t code = check_batch(sessions, count, tokens, lengths);
  if (code != BG_OK)
    return code;
  const int32_t *at = tokens;
  for (int32_t i = 0; i < count; at += lengths[i++]) {
    requests[i].code = check_request(&requests[i], lengths[i]);
    if (requests[i].code == BG_OK)
      requests[i].code = check_tokens(sessions[i], at, lengths[i]);
    sessions[i]->began = sessions[i]->position;
  }
  const wanted want = {.requests = requests, .chosen = chosen};
  append(sessions, count, tokens, lengths, &want);
  for (int32_t i = 0; i < count; i++)
    if (requests[i].code != BG_OK)
      go_back(sessions[i], sessions[i]->began); // the base is no later
    else
      delta_keep(sessions[i]);
  return BG_OK;
}

int32_t bg_next(bg_session *session, const int32_t *tokens, int32_t n, const bg_sampling *sampling,
                const int32_t *history, int32_t n_history, uint64_t step, int32_t *chosen, int32_t count) {
  bg_choice request = {sampling, history, n_history, count, step, BG_OK};
  const int32_t code = bg_next_batch(&session, 1, tokens, &n, &request, chosen);
  return code == BG_OK ? request.code : code;
}

int32_t bg_sample(bg_session *session, const bg_sampling *sampling, const float *logits,
                  const int32_t *history, int32_t n, uint64_t step) {
  if (!session || !sampling || !logits || n < 0 || (n && !history) || !sampling_is_sane(sampling))
    return BG_E_ARGUMENT;
  const uint64_t callers = fp_default();
  const token_logits all = {logits, NULL, session->state->model->config.vocab};
  const int32_t token = sample(session->state, sampling, &all, history, n, step);
  fp_set(callers);
  return token;
}
