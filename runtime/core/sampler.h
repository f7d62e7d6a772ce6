// sampler.h: logits -> the next token.
#ifndef BITGEN_SAMPLER_H
#define BITGEN_SAMPLER_H

#include "core/logits.h"

int sampling_is_sane(const bg_sampling *sampling);

// bg_sample of some tokens, without those that cannot be chosen; a history's recent ones are among them.
int32_t sample(state *s, const bg_sampling *sampling, const token_logits *of, const int32_t *history,
               int32_t n, uint64_t step);

#endif
