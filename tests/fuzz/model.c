// model.c: any packed model is refused, or computes something: bg_open, a prompt that is one pass of many tokens,
// some tokens one by one, others that are forgotten, a state that is kept, and the vocabulary behind it. The input: u8
// how, then edits.h.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <sanitizer/asan_interface.h>

#include "bitgen.h"
#include "core/model.h"
#include "edits.h"
#include "text/tokenizer.h"

enum { PROMPT = 40, STEPS = 3, CONTEXT = 64 };

// Tokens that are forgotten, by the state's log; then all from the beginning, from a state that was kept.
static void go_back(bg_session *s, const int32_t *tokens, int32_t n) {
  const int32_t some = n < 5 ? n : 5;
  if (bg_rewind(s, 0) != BG_OK || bg_forward(s, tokens, some, NULL, 0) != BG_OK ||
      bg_rewind(s, some / 2) != BG_OK)
    abort();
  uint8_t *state = malloc((size_t)bg_state_bytes(s) + 1);
  if (state && bg_state_save(s, state) == BG_OK) {
    bg_forward(s, tokens, some - some / 2, NULL, 0);
    if (bg_state_load(s, some / 2, state) != BG_OK || bg_position(s) != some / 2)
      abort();
    bg_forward(s, tokens, some - some / 2, NULL, 0);
  }
  free(state);
}

static void run(bg_model *m, uint32_t how) {
  static const bg_sampling samplings[2] = {
      {.temperature = 0, .top_p = 1, .repeat_penalty = 1},
      {.temperature = 0.8f, .top_k = 7, .top_p = 0.9f, .repeat_penalty = 1.2f, .repeat_last = 9}};
  const int32_t context = bg_context(m) < CONTEXT ? bg_context(m) : CONTEXT;
  bg_session *s = NULL;
  if (bg_session_open(m, how < 192 ? 1 : 2, context, (int32_t)(how % 3), &s) != BG_OK)
    return;
  float *logits = malloc((size_t)bg_vocab(m) * sizeof *logits);
  int32_t history[PROMPT + STEPS], n = PROMPT < context ? PROMPT : context - 1;
  for (int32_t i = 0; i < n; i++)
    history[i] = i * 7 % bg_vocab(m);
  if (logits && n > 1 && bg_forward(s, history, n - 1, logits, 0) == BG_OK)
    for (int32_t step = 0; step < STEPS; step++, n++)
      if (bg_next(s, history + n - 1, 1, &samplings[how / 4 % 2], history, n, (uint64_t)step, history + n,
                  1) != BG_OK)
        break;
  free(logits);
  go_back(s, history, n);
  bg_session_close(s);
}

static void read_vocabulary(const bg_model *m) {
  static const char text[] = "It's 12345 e\xcc\x81 \xea\xb0\x80 <|eot|>";
  vocabulary v;
  size_t bytes;
  int32_t *ids = NULL;
  const void *file = bg_vocabulary(m, &bytes);
  if (vocabulary_open(&v, file, bytes) == BG_OK)
    tokenizer_encode(&v, text, sizeof text - 1, &ids);
  free(ids);
}

static size_t from_the_start(const file *seed, uint32_t place) { return place % seed->size; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  input in = {data, size};
  const uint32_t how = take(&in, 1);
  size_t bytes;
  uint8_t *packed = edited(&in, from_the_start, offsetof(bg_header, file_bytes), &bytes);
  char path[64];
  const int fd = memfd_create("model", 0);
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  if (!packed || fd < 0 || write(fd, packed, bytes) != (ssize_t)bytes)
    abort();
  free(packed);
  bg_model *m = NULL;
  if (bg_open(path, -1, &m) == BG_OK) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), rest = -m->bytes % page;
    __asan_poison_memory_region(m->map + m->bytes, rest);
    run(m, how);
    read_vocabulary(m);
    __asan_unpoison_memory_region(m->map + m->bytes, rest);
  }
  bg_close(m);
  close(fd);
  return 0;
}
