// threads_lab.c: callers in threads of their own, for ThreadSanitizer. MODEL THREADS: each takes the same tokens
// through a session of its own, which has THREADS threads, and through two that share; prints how many logits and
// choices differ from the first caller's.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitgen.h"

enum { CALLERS = 3, PROMPT = 70, STEPS = 6, TOKENS = PROMPT + STEPS };

static bg_model *model;
static int32_t threads;

typedef struct {
  pthread_t id;
  int32_t code, chosen[TOKENS];
  float *logits; // [3][vocab]: after the prompt; after the choices, of two sequences together
} caller;

// A prompt in one pass, then tokens one by one.
static int32_t generate(bg_session *s, caller *c) {
  const bg_sampling sampling = {
      .temperature = 0.8f, .top_k = 20, .top_p = 0.9f, .repeat_penalty = 1.2f, .repeat_last = 8, .seed = 3};
  for (int32_t i = 0; i < PROMPT; i++)
    c->chosen[i] = i * 13 % bg_vocab(model);
  int32_t code = bg_forward(s, c->chosen, PROMPT - 1, c->logits, 0);
  for (int32_t n = PROMPT; n < TOKENS && code == BG_OK; n++)
    code = bg_next(s, c->chosen + n - 1, 1, &sampling, c->chosen, n, (uint64_t)n, c->chosen + n, 1);
  return code;
}

static void *call(void *arg) {
  caller *c = arg;
  const size_t vocab = (size_t)bg_vocab(model);
  const int32_t lengths[2] = {1, PROMPT};
  bg_session *both[2] = {NULL, NULL};
  int32_t tokens[1 + PROMPT];
  c->logits = calloc(3 * vocab, sizeof *c->logits);
  c->code = bg_session_open(model, threads, 2 * TOKENS, BG_CACHE_F16, &both[0]);
  if (c->code == BG_OK)
    c->code = bg_session_share(both[0], TOKENS, &both[1]);
  if (c->code == BG_OK)
    c->code = generate(both[0], c);
  tokens[0] = c->chosen[TOKENS - 1];
  memcpy(tokens + 1, c->chosen, PROMPT * sizeof *tokens);
  if (c->code == BG_OK)
    c->code = bg_forward_batch(both, 2, tokens, lengths, c->logits + vocab, 0);
  bg_session_close(both[0]);
  bg_session_close(both[1]);
  return NULL;
}

int main(int argc, char **argv) {
  static caller callers[CALLERS];
  int32_t different = 0, code = argc == 3 ? bg_open(argv[1], -1, &model) : BG_E_ARGUMENT;
  threads = argc == 3 ? atoi(argv[2]) : 0;
  for (int i = 0; i < CALLERS && code == BG_OK; i++)
    code = pthread_create(&callers[i].id, NULL, call, &callers[i]) ? BG_E_THREAD : BG_OK;
  for (int i = 0; i < CALLERS && code == BG_OK; i++) {
    pthread_join(callers[i].id, NULL);
    different +=
        callers[i].code != BG_OK ||
        memcmp(callers[i].chosen, callers[0].chosen, sizeof callers[0].chosen) != 0 ||
        memcmp(callers[i].logits, callers[0].logits, 3 * (size_t)bg_vocab(model) * sizeof(float)) != 0;
  }
  for (int i = 0; i < CALLERS; i++)
    free(callers[i].logits);
  bg_close(model);
  printf("%d\n", code == BG_OK ? different : code);
  return code != BG_OK || different;
}
