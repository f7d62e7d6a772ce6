// text.c: any bytes through tokenizers that are right. A text that spells no special token comes back from its ids
// byte for byte where every byte is a token; where texts are normalised, its ids come back from their text.
#include "edits.h"
#include "use.h"

static int spells_special(const vocabulary *v, const uint8_t *text, size_t bytes) {
  for (size_t i = 0; i < bytes; i++)
    if (find_special(v, text + i, bytes - i))
      return 1;
  return 0;
}

static int every_byte_is_a_token(const vocabulary *v) {
  for (int i = 0; i < 256; i++)
    if (v->bytes[i] < 0)
      return 0;
  return 1;
}

static void check(const vocabulary *v, const uint8_t *text, size_t bytes) {
  int32_t *ids = NULL, *again = NULL;
  const int32_t n = encoded(v, text, bytes, &ids);
  if ((n == BG_E_VALUE) == utf8_valid(text, bytes))
    abort();
  if (n >= 0) {
    size_t length;
    char *back = decoded(v, ids, n, &length);
    const int promised =
        v->header->flags & BYTE_LEVEL && every_byte_is_a_token(v) && !spells_special(v, text, bytes);
    if (promised && !(v->header->flags & NFC) && (length != bytes || memcmp(back, text, bytes) != 0))
      abort();
    if (promised && (encoded(v, (const uint8_t *)back, length, &again) != n ||
                     (n && memcmp(ids, again, (size_t)n * sizeof *ids) != 0)))
      abort();
    free(back);
  }
  free(ids);
  free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static vocabulary opened[16];
  for (uint32_t i = 0; i < n_seeds; i++) {
    if (!opened[i].header && vocabulary_open(&opened[i], seeds[i].bytes, seeds[i].size) != BG_OK)
      abort();
    check(&opened[i], data, size);
  }
  return 0;
}
