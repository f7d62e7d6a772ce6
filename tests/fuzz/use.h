// use.h: encode a text and decode what comes, with the checks that hold for every vocabulary.
#ifndef BITGEN_USE_H
#define BITGEN_USE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitgen.h"
#include "text/tokenizer.h"

// The text of n ids, to free(); what a check says when it fails ends the fuzzer.
static inline char *decoded(const vocabulary *v, const int32_t *ids, int32_t n, size_t *bytes) {
  char *text = NULL;
  FILE *out = open_memstream(&text, bytes);
  text_stream stream = {.n = 0};
  for (int32_t i = 0; i < n; i++)
    tokenizer_decode(v, ids[i], &stream, out);
  text_stream_end(&stream, out);
  fclose(out);
  if (!utf8_valid((const uint8_t *)text, *bytes))
    abort();
  return text;
}

// The ids of a copy of the text, behind which all is poisoned; or a code. *ids is to free().
static inline int32_t encoded(const vocabulary *v, const uint8_t *text, size_t bytes, int32_t **ids) {
  char *copy = malloc(bytes ? bytes : 1);
  memcpy(copy, text, bytes);
  const int32_t n = tokenizer_encode(v, copy, bytes, ids);
  free(copy);
  if (n < 0 && n != BG_E_VALUE && n != BG_E_MEMORY)
    abort();
  for (int32_t i = 0; i < n; i++)
    if ((*ids)[i] < 0 || (uint32_t)(*ids)[i] >= v->header->tokens)
      abort();
  return n;
}

#endif
