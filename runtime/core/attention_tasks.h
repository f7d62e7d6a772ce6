// attention_tasks.h: attention of a chunk, divided among threads.
#ifndef BITGEN_ATTENTION_TASKS_H
#define BITGEN_ATTENTION_TASKS_H

#include "core/state.h"

// query [n][heads][d] <- softmax(query k^T / sqrt(d)) v, causal; of runs divided by blocks only partial
// results, until merge_blocks has put those of row t together (of other runs it leaves all as it is).
void plan_attention(state *s); // once for a chunk: the units of work of each run
void attend(state *s);
void merge_blocks(state *s, int32_t t);

#endif
