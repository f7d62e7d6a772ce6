// tokenizer_lab.c: the tokenizer behind a pipe.
//
//   tokenizer_lab VOCABULARY < {int32 kind, count; payload} ...
//
// kind 0: `count` bytes of text -> int32 n, ids [n], or a negative code; 1: `count` int32 ids -> int32 n,
// bytes of text
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitgen.h"
#include "text/tokenizer.h"

static void *read_all(const char *path, size_t *bytes) {
  FILE *file = fopen(path, "rb");
  if (!file)
    return NULL;
  fseek(file, 0, SEEK_END);
  *bytes = (size_t)ftell(file);
  rewind(file);
  void *data = aligned_alloc(64, (*bytes + 63) / 64 * 64);
  if (data && fread(data, 1, *bytes, file) != *bytes)
    *bytes = 0;
  fclose(file);
  return data;
}

static void encode(const vocabulary *v, const char *text, size_t bytes) {
  int32_t *ids, n = tokenizer_encode(v, text, bytes, &ids);
  fwrite(&n, sizeof n, 1, stdout);
  if (n > 0)
    fwrite(ids, sizeof *ids, (size_t)n, stdout);
  free(ids);
}

static void decode(const vocabulary *v, const int32_t *ids, int32_t n) {
  char *text = NULL;
  size_t bytes = 0;
  FILE *out = open_memstream(&text, &bytes);
  text_stream stream = {.n = 0};
  for (int32_t i = 0; i < n; i++)
    tokenizer_decode(v, ids[i], &stream, out);
  text_stream_end(&stream, out);
  fclose(out);
  const int32_t length = (int32_t)bytes;
  fwrite(&length, sizeof length, 1, stdout);
  fwrite(text, 1, bytes, stdout);
  free(text);
}

int main(int argc, char **argv) {
  vocabulary v;
  size_t bytes = 0;
  void *blob = argc == 2 ? read_all(argv[1], &bytes) : NULL;
  int32_t call[2];
  if (!blob || vocabulary_open(&v, blob, bytes) != BG_OK) {
    fputs("not a vocabulary\n", stderr);
    free(blob);
    return 1;
  }
  while (fread(call, sizeof call, 1, stdin) == 1) {
    const size_t size = (size_t)call[1] * (call[0] ? sizeof(int32_t) : 1);
    void *payload = malloc(size + 1);
    if (fread(payload, 1, size, stdin) != size)
      return 2;
    if (call[0])
      decode(&v, payload, call[1]);
    else
      encode(&v, payload, size);
    fflush(stdout);
    free(payload);
  }
  free(blob);
  return 0;
}
