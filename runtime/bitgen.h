// bitgen.h: the whole public ABI of a bitgen library.
//
// A library holds one model shape's kernels for one or more instruction-set levels ("ISAs"), best first,
// and the runtime that drives them. Every function that can fail returns BG_OK or a negative code; nothing
// prints, exits or aborts. Only plain C types appear here: the Python binding takes its declarations from
// the part between the two marker lines, so that no signature is written twice.
#ifndef BITGEN_H
#define BITGEN_H

#include <stddef.h>
#include <stdint.h>

// Everything else in the library is hidden.
#if defined(_WIN32)
#pragma clang attribute push(__attribute__((dllexport)), apply_to = function)
#else
#pragma GCC visibility push(default)
#endif
// <cdef>
enum {
  BG_OK = 0,
  BG_E_ARGUMENT = -1,  // a null pointer, a count out of range
  BG_E_MEMORY = -2,    // an allocation or a mapping failed
  BG_E_IO = -3,        // the file cannot be opened or read
  BG_E_FORMAT = -4,    // not a packed model, or cut short, or with impossible fields
  BG_E_LAYOUT = -5,    // packed for other kernels than this library holds
  BG_E_NO_KERNEL = -6, // the library lacks a kernel for a matrix of this model
  BG_E_ISA = -7,       // no such ISA level here, or this CPU cannot execute it
  BG_E_CONTEXT = -8,   // the tokens do not fit into the session's context
  BG_E_TOKEN = -9,     // a token id outside the vocabulary
  BG_E_VALUE = -10,    // NaN or infinity in the file's scales or norms
  BG_E_THREAD = -11,   // a worker thread cannot be started
  BG_E_STATE = -12,    // the session's state cannot go back so far, or awaits bg_state_load
};

enum bg_cache { BG_CACHE_F16, BG_CACHE_F32, BG_CACHE_I8 };
// Counts the changes of what a forward pass computes: other versions give the same model other bits.
enum bg_definition { BG_DEFINITION = 1 };

typedef struct bg_model bg_model;     // mapped weights, shared by sessions
typedef struct bg_session bg_session; // one sequence: its KV cache, and what serves it: buffers, threads

// What the library holds. ISA levels are numbered from the best (0) down; -1 asks for the best that runs.
int32_t bg_isa_count(void);
const char *bg_isa_name(int32_t isa);
int32_t bg_isa_runs(int32_t isa); // 1 when its probe executed on this CPU
int32_t bg_isa_best(void);        // the first that runs, or BG_E_ISA
// The layout key that a packed model must carry; "" for a bare kernel set.
const char *bg_isa_layout(int32_t isa);
const char *bg_strerror(int32_t code);

// A model is opened from a packed file (on Windows its path is UTF-8); weights stay
// memory-mapped until bg_close.
int32_t bg_open(const char *path, int32_t isa, bg_model **out);
void bg_close(bg_model *model);
int32_t bg_vocab(const bg_model *model);
int32_t bg_context(const bg_model *model); // the longest context the model was made for

// The tokenizer that a program's file carries beside the model (vocabulary.h), and its size; or NULL.
const void *bg_vocabulary(const bg_model *model, size_t *bytes);

// Every buffer that forward touches is made when a session opens; forward allocates nothing.
// cache: BG_CACHE_F16; BG_CACHE_I8, half the bytes (a scale per position and kv head); or BG_CACHE_F32, twice
// the bytes, for comparisons with models that do not round keys and values.
int32_t bg_session_open(bg_model *model, int32_t threads, int32_t context, int32_t cache, bg_session **out);
// Another session that shares the buffers and threads of one: for sequences that are taken through the model
// together. Sessions that share are not for two callers at once; they are closed in any order.
int32_t bg_session_share(bg_session *with, int32_t context, bg_session **out);
void bg_session_close(bg_session *session);
int32_t bg_position(const bg_session *session); // tokens in the KV cache
// Forget tokens after `position`. A model with Gated DeltaNet has a state that cannot forget: it goes back to 0, and to
// where the latest call began or within it, if that appended no more than REWINDABLE tokens. Anything else may be
// BG_E_STATE, with nothing changed.
int32_t bg_rewind(bg_session *session, int32_t position);
enum bg_rewindable { REWINDABLE = 16 };

// Keys and values out of the cache and into it again: what a prompt has computed, to be kept elsewhere.
// `positions` is [n][bg_position_bytes]: the same bytes for every ISA level, thread count and context, for
// sessions of the same model and type of cache. bg_session_load appends n positions as if their tokens had been
// appended, or changes nothing and returns BG_E_CONTEXT. It takes any bytes; of those that bg_session_save did not
// write, the logits that follow are the caller's affair.
int64_t bg_position_bytes(const bg_session *session);
int32_t bg_session_save(const bg_session *session, int32_t first, int32_t n, uint8_t *positions);
int32_t bg_session_load(bg_session *session, int32_t n, const uint8_t *positions);
// What a session of a model with Gated DeltaNet has beside its positions: the state after the last of them, of
// bg_state_bytes (0 for other models: nothing is saved or loaded). bg_state_load goes to a position that the session
// holds, and takes the state that was saved there; it takes any bytes, likewise. Behind bg_session_load the session
// takes no tokens (BG_E_STATE) before that.
int64_t bg_state_bytes(const bg_session *session);
int32_t bg_state_save(const bg_session *session, uint8_t *state);
int32_t bg_state_load(bg_session *session, int32_t position, const uint8_t *state);

// Append n tokens. logits: NULL, or float32 [vocab] of the last token (all == 0), or [n][vocab] (all == 1).
int32_t bg_forward(bg_session *session, const int32_t *tokens, int32_t n, float *logits, int32_t all);
// Append lengths[i] >= 1 tokens to each of `count` different sessions that share; tokens holds those of one
// after the other. The weights are read once for all of them. logits: NULL, or float32 [count][vocab] of each
// one's last token (all == 0), or [sum of lengths][vocab] (all == 1): the same bits as when each runs alone.
// An error changes nothing.
int32_t bg_forward_batch(bg_session *const *sessions, int32_t count, const int32_t *tokens,
                         const int32_t *lengths, float *logits, int32_t all);

// The same without the output matrix: states float32 [count][hidden] or [sum of lengths][hidden]
// after the last norm.
int32_t bg_states_batch(bg_session *const *sessions, int32_t count, const int32_t *tokens,
                        const int32_t *lengths, float *states, int32_t all);

// Where forward spends its time: the four products, the steps between them, attention, the head; and those of layers
// with Gated DeltaNet.
enum bg_step {
  BG_STEP_QKV,
  BG_STEP_O,
  BG_STEP_GATE_UP,
  BG_STEP_DOWN,
  BG_STEP_EMBED,
  BG_STEP_ENTER_ATTENTION, // norm, quantise
  BG_STEP_SPLIT_HEADS,     // RoPE, write the cache
  BG_STEP_ATTENTION,
  BG_STEP_LEAVE_ATTENTION, // sub-norm, quantise
  BG_STEP_ENTER_FFN,       // add, norm, quantise
  BG_STEP_ACTIVATE,        // activation, sub-norm, quantise
  BG_STEP_LEAVE_FFN,       // add
  BG_STEP_FINAL_NORM,
  BG_STEP_HEAD,
  BG_STEP_DELTA_IN, // the products of such a layer
  BG_STEP_DELTA_OUT,
  BG_STEP_ENTER_DELTA, // norm, quantise
  BG_STEP_DELTA_RATES, // the product that gives decay and beta
  BG_STEP_CONVOLVE,    // convolution, norms of q and k
  BG_STEP_DELTA,       // the recurrence
  BG_STEP_LEAVE_DELTA, // norm, gate, quantise
  BG_STEPS,
};

typedef struct {
  int64_t nanoseconds, calls;
} bg_step_time;

// on != 0: time every step from now on, from zero; 0: stop. out: NULL, or [BG_STEPS] for what
// was timed until now.
int32_t bg_profile(bg_session *session, int32_t on, bg_step_time *out);

typedef struct {
  float temperature;    // 0: greedy
  int32_t top_k;        // 0: off
  float top_p;          // 1: off
  float min_p;          // 0: off
  float repeat_penalty; // 1: off; over the last `repeat_last` tokens given to bg_sample
  int32_t repeat_last;
  uint64_t seed;
} bg_sampling;

// Choose the next token from logits float32 [vocab]. `history` holds the n tokens so far (for the penalty);
// `step` numbers the draw: the same seed and step give the same draw. Returns the token or a negative code.
int32_t bg_sample(bg_session *session, const bg_sampling *sampling, const float *logits,
                  const int32_t *history, int32_t n, uint64_t step);

// Append n tokens and choose what follows each of the last `count`: the tokens that bg_forward and bg_sample
// would give, into `chosen`, but with a certified head mostly without computing all logits. `history` ends
// with the appended tokens; the i-th choice sees it up to its own token, and draws at step + i.
// 0 <= count <= n, n_history >= count. An error changes nothing.
int32_t bg_next(bg_session *session, const int32_t *tokens, int32_t n, const bg_sampling *sampling,
                const int32_t *history, int32_t n_history, uint64_t step, int32_t *chosen, int32_t count);

// What one session of bg_next_batch is to choose, by the rules of bg_next, and what became of it.
typedef struct {
  const bg_sampling *sampling; // not looked at where count is 0
  const int32_t *history;      // [n_history], likewise
  int32_t n_history;
  int32_t count; // tokens to choose, one after each of the last `count` appended ones; 0: only append
  uint64_t step;
  int32_t code; // written by the call: BG_OK, or why the session is as it was before
} bg_choice;

// Append lengths[i] >= 1 tokens to each of `count` different sessions that share, as bg_forward_batch does, and
// choose what requests[i] says. The weights and a certified head's codes are read once for all of them. With a
// request that only appends, a long prompt is taken in pieces while other sessions decode.
// chosen: the tokens of one session after the other, requests[i].count each.
//
// An error of one session is its own. It is left as it was, with its error in requests[i].code, what stands in
// its part of `chosen` means nothing (a count below 0 has no part), and the others are served:
//   BG_E_ARGUMENT  count below 0 or above lengths[i] or n_history, sampling out of range, a null pointer
//   BG_E_CONTEXT   its tokens do not fit into its context
//   BG_E_TOKEN     an id outside the vocabulary among its tokens or the penalised ones of its history
//   BG_E_VALUE     its logits are no numbers
// Returns BG_OK whatever the codes are, or BG_E_ARGUMENT, with nothing changed and no code written, where the
// call is no batch: a null pointer, a length below 1, sessions that repeat or do not share.
int32_t bg_next_batch(bg_session *const *sessions, int32_t count, const int32_t *tokens,
                      const int32_t *lengths, bg_choice *requests, int32_t *chosen);
// Rows of floats of the output matrix that bg_next has read so far.
int64_t bg_rescored(const bg_session *session);

// Kernels one by one: for tests, tuning and `bitgen bench`.
typedef struct {
  const char *symbol;
  int32_t m, k, m_pad;                 // logical shape; rows of y as written
  int32_t panels, max_n;               // units along M that threads divide; most tokens per call (1 for gemv)
  int64_t weight_bytes, operand_bytes; // packed matrix; prepared activations of one token
  int64_t row_bytes; // q of one token: int8 [k], and in a kernel with groups float steps [k / group]
} bg_kernel_info;

int32_t bg_kernel_count(int32_t isa);
int32_t bg_kernel_get(int32_t isa, int32_t index, bg_kernel_info *out);
// y int32 [n][m_pad] = w (packed) x q int8 [n][k]
int32_t bg_kernel_run(int32_t isa, int32_t index, const uint8_t *w, const int8_t *q, int32_t n, int32_t *y,
                      int32_t threads);
// Seconds of each of `reps` runs over `copies` packed matrices laid end to end (64-byte aligned), visited in
// turn. Operand preparation is inside the time, as it is in a forward pass.
int32_t bg_kernel_time(int32_t isa, int32_t index, const uint8_t *w, int32_t copies, const int8_t *q,
                       int32_t n, int32_t threads, int32_t reps, double *seconds);
// Sequential read bandwidth of `bytes` (64 KiB or more) at `buffer` in bytes per second, best
// of `reps` passes.
int32_t bg_read_bandwidth(int32_t isa, const void *buffer, size_t bytes, int32_t threads, int32_t reps,
                          double *bytes_per_s);
// Peak integer operations per second of the ISA's dot product on registers (two per
// multiply-add), best of `reps`.
int32_t bg_peak_ops(int32_t isa, int32_t threads, int32_t reps, double *ops_per_s);
// </cdef>
#if defined(_WIN32)
#pragma clang attribute pop
#else
#pragma GCC visibility pop
#endif

#endif
