// forward.h: the pass of a chunk through the model.
#ifndef BITGEN_FORWARD_H
#define BITGEN_FORWARD_H

#include "core/state.h"

// Takes the chunk in flight through the layers, writes its tokens to the caches behind the sessions'
// positions, and gives what the chunk wants: logits, states or choices.
void forward_chunk(state *s);

#endif
