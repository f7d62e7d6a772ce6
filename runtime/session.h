// session.h: sequences, and the state they share: the buffers and threads that take a chunk of their tokens
// through the layers. Every buffer is made when a session opens.
#ifndef BITGEN_SESSION_H
#define BITGEN_SESSION_H

#include <stdatomic.h>

#include "model.h"
#include "pool.h"

enum { ATTEND_ROWS = 16 };   // query rows that share one pass over keys and values
enum { CHUNK = 512 };        // most tokens of one pass through the layers; fewer, but these at the least,
enum { LEAST_CHUNK = 128 };  // where the state's first session holds fewer
enum { SPREAD = 8 };         // tokens of a sequence whose attention is divided by blocks of positions too
enum { CHOICES = 16 };       // tokens that are chosen in one pass over the output matrix
enum { MOST_KEPT = 320 };    // of the greatest logits; a choice that depends on more takes all
enum { MOST_CAUGHT = 4096 }; // candidates of one choice, for each thread and in the end

// Allocations that live and die together.
typedef struct {
  void *owned[24];
  int32_t n;
} arena;

typedef struct state state;

// One sequence.
struct bg_session {
  state *state;
  int32_t context;  // positions that the cache holds
  int32_t position; // tokens in the cache

  int32_t attend_blocks; // of ATTEND_BLOCK positions that make up the context
  size_t k_head, v_head; // bytes of one head's cache in one layer
  uint8_t *k, *v;        // [layers][kv_heads] caches of k_head and v_head bytes, as ops.h lays them out
  float *partials;       // [SPREAD][heads][attend_blocks] partial results of attention
  arena arena;
};

// Rows of the chunk that are consecutive tokens of one session, the first at its position.
typedef struct {
  bg_session *session;
  int32_t row0, n;
  int32_t units_end; // units of attention of this run and those before it
} run;

// What a pass is to give for the last `last` tokens of each session, or of each choice for as
// many as it asks.
typedef struct {
  float *logits;         // [..][vocab], or NULL
  float *states;         // [..][hidden] after the last norm, or NULL
  const bg_choice *asks; // of each session: the tokens that follow are chosen; or NULL
  int32_t *chosen;       // [..]
  int32_t last;
} wanted;

// What one thread has caught for one choice: rows of the output matrix whose logit may be great enough.
typedef struct {
  float bar; // what upper ends must reach
  int32_t n; // caught, ids rising; -1: too many
  int32_t ids[MOST_CAUGHT];
  float upper[MOST_CAUGHT];
  float kept[MOST_KEPT]; // a heap: the greatest lower ends, the least of them first
} net;

// Tokens to choose from: logits [n] of ids [n], which rise, or of all (ids NULL).
typedef struct {
  const float *logits;
  const int32_t *ids;
  int32_t n;
} options;

struct state {
  const bg_model *model;
  const bg_ops *ops;
  const bg_row_ops *rows;            // for what the kernels give
  const bg_attention_ops *attention; // for the cache's type
  pool *pool;
  atomic_int sessions; // that share this

  int32_t chunk; // rows at most

  // The chunk in flight
  int32_t n; // rows
  int32_t layer;
  int32_t window;        // positions that a token sees in this layer
  const int32_t *tokens; // [n]
  run runs[CHUNK];
  int32_t n_runs;
  int32_t run_of[CHUNK];    // the run of each row
  int32_t logits_of[CHUNK]; // the index of each row's logits, or -1
  int32_t n_logits;
  int32_t ask_of[CHUNK];  // of each of these: which of the call's sessions it belongs to,
  int32_t left_of[CHUNK]; // and how many tokens are left of it, with this one
  wanted want;            // of this chunk on
  int32_t code;           // the first error of a choice
  atomic_int next_unit;   // of attention, that no thread has taken yet

  // Sizes of rows
  int32_t screen_row;                             // a row of a certified head's codes
  int32_t hidden_row, query_row, wide_row, q_row; // of x and states, query, h and q
  size_t y_at[BG_ROLES], operand_at[BG_ROLES];    // where the role's rows begin in y and operand

  // [chunk] rows each
  float *x;         // [hidden_row] the residual stream
  float *query;     // [query_row] the queries of all heads, then what attention makes of them
  float *states;    // [hidden_row] the first n_logits: what the output matrix is multiplied by
  float *s;         // [BG_ROLES] the scale of a product's input
  uint8_t *operand; // the inputs as the kernels want them, for each role of a stage
  int32_t *y;       // the products of a stage
  float *cos, *sin; // [head_dim / 2] of the token's position; then the same for layers with a window

  // [threads] rows each, of the token at hand
  float *h;  // [wide_row] the input of the next product
  int8_t *q; // [q_row] h in int8, q = h s: as the product's bg_row_bytes

  uint8_t *work;  // [threads] what a kernel asks for as scratch
  float *scratch; // [threads][2 * ATTEND_ROWS] partial results

  // Profile
  int32_t profiling;
  int64_t lap_began; // nanoseconds: the end of the step before
  bg_step_time times[BG_STEPS];

  // Sampling
  float *scores;   // [vocab]
  uint64_t *order; // [vocab]

  // Choosing
  int8_t *parts;    // [CHOICES][2][screen_row] hidden states, rounded, as two digits; zeros behind
  net *nets;        // [threads][CHOICES]
  int32_t *ids;     // [CHOICES][MOST_CAUGHT] rows that are computed
  float *some;      // [CHOICES][MOST_CAUGHT] their logits
  float *choices;   // [CHOICES][vocab] all logits, where they are needed
  int64_t rescored; // rows of the float16 matrix read so far

  arena arena;
};

// The queries of row t, its run and its position there.
static inline float *query_of(const state *s, int32_t t) { return s->query + (size_t)t * s->query_row; }
static inline const run *run_of(const state *s, int32_t t) { return &s->runs[s->run_of[t]]; }
static inline int32_t position_of(const state *s, int32_t t) {
  const run *r = run_of(s, t);
  return r->session->position + t - r->row0;
}

// One head's cache in this layer.
static inline uint8_t *k_cache(const bg_session *of, int32_t kv_head) {
  return of->k + ((size_t)of->state->layer * of->state->model->config.kv_heads + kv_head) * of->k_head;
}
static inline uint8_t *v_cache(const bg_session *of, int32_t kv_head) {
  return of->v + ((size_t)of->state->layer * of->state->model->config.kv_heads + kv_head) * of->v_head;
}

// query [n][heads][d] <- softmax(query k^T / sqrt(d)) v, causal; of runs divided by blocks only partial
// results, until merge_blocks has put those of row t together (of other runs it leaves all as it is).
int32_t attend_units(const run *r); // of work that a run is divided into
void attend(state *s);
void merge_blocks(state *s, int32_t t);

// Append lengths[i] tokens to each session, for what is wanted.
int32_t append(bg_session *const *sessions, int32_t count, const int32_t *tokens, const int32_t *lengths,
               const wanted *want);

void lap(state *s, int step); // a step (enum bg_step) has ended, the next begins

// logits [n][vocab] of states x [n][hidden_row]
void output_logits(state *s, const float *x, int32_t n, float *logits);
// The tokens that follow the chunk's states h [n_logits][hidden_row], as they are asked for.
void choose_tokens(state *s);

int sampling_is_sane(const bg_sampling *how);
// bg_sample of some tokens, without those that cannot be chosen; a history's recent ones are among them.
int32_t sample(state *s, const bg_sampling *how, const options *of, const int32_t *history, int32_t n,
               uint64_t step);
int32_t place_of(const int32_t *ids, int32_t n, int32_t id); // of the first of rising ids that is not less

#endif
