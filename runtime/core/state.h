// state.h: sequences, and the state they share: the buffers and threads that take a chunk of their tokens
// through the layers. Every buffer is made when a session opens.
#ifndef BITGEN_STATE_H
#define BITGEN_STATE_H

#include <stdatomic.h>

#include "core/model.h"
#include "core/pool.h"

// <cdef>
enum bg_pass {
  CHUNK = 512,       // most tokens of one pass through the layers; fewer, but these at the least,
  LEAST_CHUNK = 128, // where the state's first session holds fewer
  CHOICES = 16,      // tokens that are chosen in one pass over the output matrix
};
// </cdef>

enum { ATTEND_ROWS = 16 };      // query rows that share one pass over keys and values
enum { SPREAD = 8 };            // tokens of a sequence whose attention is divided by blocks of positions too
enum { MAX_TOP_K = 320 };       // of the greatest logits; a choice that depends on more takes all
enum { MAX_CANDIDATES = 4096 }; // of one choice, for each thread and in the end
enum { UNPACKED_ROWS = 8 };     // of a ternary head, as floats: they stay in the second-level cache

// Allocations that live and die together.
typedef struct {
  void *owned[32];
  int32_t n;
} arena;

typedef struct state state;

// What Gated DeltaNet keeps of a sequence: for each of its layers all slices of its heads, then the inputs of the
// convolution that the next position needs (model.h: state, tail). Forgetting a position cannot undo it, and so
// there is the state of an earlier position too, the base, and a log of what came in since: from these
// delta_rewind computes the states between anew, with the same bits.
typedef struct {
  size_t layer;   // floats of a layer
  float *now;     // [layers][layer] of the session's position
  float *base;    // [layers][layer] of the position `from`
  int32_t fresh;  // whether base is what `now` should be: the next pass copies it as it goes
  int32_t from;   // position - REWINDABLE at the least, but while a call runs
  float *inputs;  // [layers][REWINDABLE][channels] of the convolution, of position from and on
  float *rates;   // [layers][REWINDABLE][2][p(value_heads)] decay and beta, likewise
  int32_t logs;   // whether the call at hand writes the log: its tokens fit there
  int32_t awaits; // whether `now` is not of the session's position: bg_state_load is to come
} delta_state;

// One sequence.
struct bg_session {
  state *state;
  int32_t context;  // positions that the cache holds
  int32_t position; // tokens in the cache
  int32_t began;    // position before the call at hand

  int32_t attend_blocks; // of ATTEND_BLOCK positions that make up the context
  size_t k_head, v_head; // bytes of one head's cache in one layer
  uint8_t *k;            // [caches][kv_heads] caches of k_head bytes, as ops.h lays them out
  uint8_t *v;            // [caches][kv_heads] caches of v_head bytes
  float *partials;       // [SPREAD][heads][attend_blocks] partial results of attention
  delta_state delta;
  arena arena;
};

// Rows of the chunk that are consecutive tokens of one session, the first at its position.
typedef struct {
  bg_session *session;
  const int32_t *tokens; // [n]
  int32_t row0, n;
  int32_t units_end; // units of attention of this run and those before it
} run;

// A token that is chosen to follow one of the chunk.
typedef struct {
  bg_choice *request;
  int32_t n_history; // tokens of its history that the choice sees
  uint64_t step;     // the number of its draw
  int32_t *chosen;
} choice;

// The tokens that go through the layers together.
typedef struct {
  int32_t n; // rows, one a token
  run runs[CHUNK];
  int32_t n_runs;
  int32_t run_of[CHUNK]; // the run of each row
  int32_t layer;
  int32_t replays; // Gated DeltaNet's inputs come from the log, and nothing else is computed
  int32_t window;  // positions that a token sees in this layer

  int32_t state_of[CHUNK]; // the index of each row's final state, or -1
  int32_t n_states;
  float *logits; // [n_states][vocab] that the caller wants, or NULL
  float *states; // [n_states][hidden] that the caller wants, or NULL
  int32_t chooses;
  choice choices[CHUNK]; // [n_states] where the chunk chooses
} chunk;

// What one thread has found for one choice: rows of the output matrix whose logit may be great enough.
typedef struct {
  int32_t k;       // of the greatest lower bounds are tracked
  float margin;    // how far below the k-th of them a logit may still decide
  float threshold; // what upper bounds must reach
  int32_t n;       // candidates, ids rising; -1: too many
  int32_t ids[MAX_CANDIDATES];
  float upper[MAX_CANDIDATES];  // upper bounds of their logits
  float top_k_lower[MAX_TOP_K]; // a heap: the greatest lower bounds, the least of them first
} candidates;

// Choosing tokens.
typedef struct {
  int32_t screen_row;      // codes in a row of a certified head
  int8_t *hidden_digits;   // [CHOICES][2][screen_row] final states, rounded, as two digits; zeros behind
  candidates *found;       // [threads][CHOICES]
  int32_t *candidate_ids;  // [CHOICES][MAX_CANDIDATES] of all threads, rising
  float *candidate_logits; // [CHOICES][MAX_CANDIDATES]
  float *all_logits;       // [CHOICES][vocab], where a choice needs them
  int64_t rescored;        // rows of floats read so far
  int8_t *quantised;       // a final state as the kernels of a ternary head take it
  uint8_t *operand;        // [CHOICES] such states as the kernels read them
  int32_t *screened;       // [CHOICES][m_pad] their products
  float *rows;             // [threads][UNPACKED_ROWS][hidden_row] rows of a ternary head
  float *scores;           // [vocab] the sampler's logits after penalties, then probabilities
  uint64_t *order;         // [vocab] the sampler's tokens by probability
} choosing;

// Where the time goes.
typedef struct {
  int32_t on;
  int64_t step_began; // nanoseconds: the end of the step before
  bg_step_time times[BG_STEPS];
} profile;

struct state {
  const bg_model *model;
  const bg_ops *ops;
  const bg_row_ops *rows;            // for what the kernels give
  const bg_attention_ops *attention; // for the cache's type
  pool *pool;
  atomic_int sessions; // that share this

  int32_t max_rows; // of a chunk
  chunk chunk;      // in flight

  // Elements of a row
  int32_t hidden_row, query_row, input_row, quantised_row;
  size_t products_at[BG_ROLES], operand_at[BG_ROLES]; // where the role's rows begin in products and operand

  // [max_rows] rows each
  float *x;     // [hidden_row] the residual stream
  float *query; // [query_row] the queries of all heads, then what attention makes of them
  float *
      final_states; // [hidden_row] after the last norm; the first n_states are used. Before: what decay and beta
                    // of Gated DeltaNet are computed from
  float
      *mixed; // [channels] queries, keys and values of Gated DeltaNet, then its outputs in the values' place
  float *rates;       // [2][p(value_heads)] decay and beta of Gated DeltaNet
  float *input_scale; // [BG_ROLES] of a product's quantised input
  uint8_t *operand;   // the inputs as the kernels want them, for each role of a stage
  int32_t *products;  // of a stage, m_pad of each role
  float *cos, *sin;   // [head_dim / 2] of the token's position; then the same for layers with a window

  // [threads] rows each, of the token at hand
  float *input;      // [input_row] of the next product
  int8_t *quantised; // [quantised_row] input in int8, input times input_scale: as the product's bg_row_bytes

  uint8_t *kernel_scratch; // [threads] what a kernel asks for
  float *attend_scratch;   // [threads][2 * ATTEND_ROWS] partial results of attention
  atomic_int next_unit;    // of attention or of Gated DeltaNet, that no thread has taken yet

  choosing choosing;
  profile profile;
  arena arena;
};

// The queries of row t, its run and its position there.
static inline float *query_of(const state *s, int32_t t) { return s->query + (size_t)t * s->query_row; }
static inline const run *run_of(const state *s, int32_t t) { return &s->chunk.runs[s->chunk.run_of[t]]; }
static inline int32_t position_of(const state *s, int32_t t) {
  const run *r = run_of(s, t);
  return r->session->position + t - r->row0;
}

static inline const bg_layer *layer_of(const state *s) { return &s->model->layers[s->chunk.layer]; }

// One head's cache in this layer.
static inline size_t cache_of(const state *s, int32_t kv_head) {
  return (size_t)layer_of(s)->index * s->model->config.kv_heads + kv_head;
}
static inline uint8_t *k_cache(const bg_session *of, int32_t kv_head) {
  return of->k + cache_of(of->state, kv_head) * of->k_head;
}
static inline uint8_t *v_cache(const bg_session *of, int32_t kv_head) {
  return of->v + cache_of(of->state, kv_head) * of->v_head;
}

// A state for one session; BG_OK, BG_E_ARGUMENT, BG_E_MEMORY or BG_E_THREAD.
int32_t state_open(const bg_model *model, const bg_attention_ops *attention, int32_t threads, int32_t context,
                   state **out);
void state_release(state *s); // a session is gone: with the last of them the state is freed

static inline const bg_kernel *kernel_of(const state *s, int role) {
  return s->chunk.n == 1 ? s->model->isa->gemv[role] : s->model->isa->gemm[role];
}

// A part's rows in its matrix's product, and what they are to be multiplied by.
static inline const int32_t *products_of(const state *s, int part, int32_t t) {
  const bg_part *p = &s->model->parts[part];
  return s->products + s->products_at[p->role] + (size_t)t * kernel_of(s, p->role)->m_pad + p->row;
}
static inline float factor(const state *s, int part, int32_t t) {
  return layer_of(s)->scales[part] / s->input_scale[t * BG_ROLES + s->model->parts[part].role];
}

// What Gated DeltaNet's rows have in the buffers.
static inline float *mixed_of(const state *s, int32_t t) {
  return s->mixed + (size_t)t * (size_t)s->model->delta.channels;
}
static inline size_t rate_row(const state *s) {
  return 2 * (size_t)padded(s->model->config.delta_value_heads);
}

// The buffers of a session whose state and context are set.
int32_t session_allocate(bg_session *session);
void session_free(bg_session *session); // and its reference to the state

#endif
