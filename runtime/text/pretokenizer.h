// pretokenizer.h: a text is cut into words, and no token reaches from one into the next.
#ifndef BITGEN_PRETOKENIZER_H
#define BITGEN_PRETOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "text/vocabulary.h"

// What is called for each word; negative codes end the cutting.
typedef int32_t word_function(void *arg, const uint8_t *word, size_t bytes);

// Cut a text by the vocabulary's patterns and call `on_word` for the words in order. BG_OK, or its first
// negative code.
int32_t pretokenize(const vocabulary *v, const uint8_t *text, size_t bytes, word_function *on_word,
                    void *arg);

#endif
