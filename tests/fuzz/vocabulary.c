// vocabulary.c: any tokenizer's file is refused, or encodes any text to its tokens and decodes any ids. The input:
// u8 length, so many bytes of text, then edits.h.
#include "edits.h"
#include "use.h"

static void use(const vocabulary *v, const uint8_t *text, size_t bytes) {
  int32_t *ids = NULL;
  const int32_t n = encoded(v, text, bytes, &ids);
  free(decoded(v, ids, n, &bytes));
  free(ids);
}

static void decode_any(const vocabulary *v, const uint8_t *from, size_t bytes) {
  int32_t ids[64];
  size_t n = least(bytes / sizeof *ids, 32), length;
  memcpy(ids, from, n * sizeof *ids);
  for (size_t i = 0; i < n; i++)
    ids[n + i] = (int32_t)((uint32_t)ids[i] % v->header->tokens);
  free(decoded(v, ids, (int32_t)(2 * n), &length));
}

// The upper byte names a section; any other is the header. So inputs outlive a new Unicode.
static size_t within_section(const file *seed, uint32_t place) {
  const vocabulary_header *h = (const vocabulary_header *)seed->bytes;
  const uint32_t section = place >> 16, at = place & 0xffff;
  return section < SECTIONS ? h->sections[section].offset + at : at % sizeof *h;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const uint8_t fixed[] =
      "It's 12345 e\xcc\x81\xcc\xa7 \xea\xb0\x80\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8 <s></s>"
      " $(a+b) \xf0\x96\xa0\x80 \r\n\n  z";
  input in = {data, size};
  size_t length = take(&in, 1), bytes;
  const uint8_t *text = take_bytes(&in, &length);
  uint8_t *blob = edited(&in, within_section, offsetof(vocabulary_header, bytes), &bytes);
  vocabulary v;
  if (blob && vocabulary_open(&v, blob, bytes) == BG_OK) {
    use(&v, text, length);
    use(&v, fixed, sizeof fixed - 1);
    decode_any(&v, text, length);
  }
  free(blob);
  return 0;
}
