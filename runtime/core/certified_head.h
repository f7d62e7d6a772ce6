// certified_head.h: the logits that decide a choice, of as few tokens as it can be told from.
#ifndef BITGEN_CERTIFIED_HEAD_H
#define BITGEN_CERTIFIED_HEAD_H

#include "core/logits.h"

// found[i], i < n <= CHOICES: what choice `first + i` of the chunk is sampled from, of its final state.
void decisive_logits(state *s, int32_t first, int32_t n, token_logits *found);

#endif
