// delta_tasks.h: Gated DeltaNet of a chunk, divided among threads; and the states of sequences.
#ifndef BITGEN_DELTA_TASKS_H
#define BITGEN_DELTA_TASKS_H

#include "core/state.h"

// rates [n][2][p(value_heads)] = the rows of decay and beta times what is in final_states
void multiply_rates(state *s);
// mixed [n][channels] <- the convolution of the product's rows, queries and keys of length one; rates <- decay, beta
void convolve(state *s);
// mixed's values <- what the states give for the queries, token by token; the states <- those after the chunk
void pass_states(state *s);
void leave_states(state *s); // all layers are through: the sequences' states are those after the chunk

// Around a call that appends n tokens to a sequence: delta_begin before, delta_keep where they stay.
void delta_begin(bg_session *of, int32_t n);
void delta_keep(bg_session *of);
// The state of an earlier position: BG_OK or BG_E_STATE, with nothing changed. The caller moves the position.
int32_t delta_rewind(bg_session *of, int32_t position);

size_t delta_bytes(const bg_session *of); // of a state; 0 where the model has none
const float *delta_now(const bg_session *of);
void delta_load(bg_session *of, const uint8_t *state); // for the session's position

#endif
