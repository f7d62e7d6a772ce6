// tokenizer.h: text to token ids and back.
//
// The ids are those of the Python package `tokenizers`. Two kinds: byte-level BPE, where patterns cut words
// (pretokenizer.c), and SentencePiece BPE, where all of a text is one word and spaces are spelt U+2581.
#ifndef BITGEN_TOKENIZER_H
#define BITGEN_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "text/utf8.h"
#include "text/vocabulary.h"

// The ids of a text, with the begin-of-text token where the model wants it. *ids is the caller's to free.
// Returns their number, BG_E_VALUE when the text is not UTF-8, BG_E_ARGUMENT for 256 MiB of it, BG_E_MEMORY.
int32_t tokenizer_encode(const vocabulary *v, const char *text, size_t bytes, int32_t **ids);

// Write what a token says. One that the vocabulary lacks becomes U+FFFD.
void tokenizer_decode(const vocabulary *v, int32_t id, text_stream *stream, FILE *out);

#endif
