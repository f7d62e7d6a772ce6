// runner.c: a small program around the library, for boards and emulators without Python.
//
//   runner info                                   ISA levels: name, whether it runs here, layout key
//   runner logits MODEL [options] < ids           logits float32 [n][vocab] of the token ids on stdin, raw
//   runner generate MODEL COUNT [options] < ids   COUNT greedy token ids after those on stdin
//   runner kernels ISA [--threads N] < calls      raw results y of raw calls {int32 index, n; w; q}
//
//   --isa NAME                  [the best that runs here]
//   --threads N                 [1]
//   --context N                 positions of the KV cache [the model's]
//   --chunk N                   tokens given to one forward call [all]
//   --cache f16 | f32 | int8    type of keys and values [f16]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitgen.h"
#include "programs/system.h"

typedef struct {
  const char *isa;
  int32_t threads, context, chunk, cache;
} options;

static int fail(const char *what, const char *why) {
  fprintf(stderr, "runner: %s: %s\n", what, why);
  return 1;
}

static int32_t isa_number(const char *name) {
  for (int32_t i = 0; name && i < bg_isa_count(); i++)
    if (strcmp(bg_isa_name(i), name) == 0)
      return i;
  return name ? bg_isa_count() : -1;
}

static int32_t cache_number(const char *name) {
  static const char *const names[] = {[BG_CACHE_F16] = "f16", [BG_CACHE_F32] = "f32", [BG_CACHE_I8] = "int8"};
  int32_t i = 0;
  while (i < 3 && strcmp(names[i], name) != 0)
    i++;
  return i; // past the last for any other name: no session opens with it
}

static int parse(int argc, char **argv, options *o) {
  *o = (options){.threads = 1};
  for (int i = 0; i + 1 < argc; i += 2) {
    const char *value = argv[i + 1];
    if (strcmp(argv[i], "--isa") == 0)
      o->isa = value;
    else if (strcmp(argv[i], "--threads") == 0)
      o->threads = atoi(value);
    else if (strcmp(argv[i], "--context") == 0)
      o->context = atoi(value);
    else if (strcmp(argv[i], "--chunk") == 0)
      o->chunk = atoi(value);
    else if (strcmp(argv[i], "--cache") == 0)
      o->cache = cache_number(value);
    else
      return fail(argv[i], "no such option");
  }
  return argc % 2 ? fail(argv[argc - 1], "an option without its value") : 0;
}

static int info(void) {
  for (int32_t i = 0; i < bg_isa_count(); i++)
    printf("%s\t%s\t%s\n", bg_isa_name(i), bg_isa_runs(i) ? "runs" : "does not run", bg_isa_layout(i));
  return 0;
}

// Read the decimal numbers on stdin. Their count, or -1 when memory is short.
static int32_t read_ids(int32_t **out) {
  int32_t n = 0, room = 0, id;
  *out = NULL;
  while (scanf("%d", &id) == 1) {
    if (n == room) {
      room = room ? 2 * room : 256;
      int32_t *more = realloc(*out, (size_t)room * sizeof *more);
      if (!more)
        return -1;
      *out = more;
    }
    (*out)[n++] = id;
  }
  return n;
}

// Append n ids in calls of `chunk`. logits: [n][vocab] of all; or NULL, and those of the last id go to
// last [vocab].
static int32_t feed(bg_session *s, const int32_t *ids, int32_t n, int32_t chunk, size_t vocab, float *logits,
                    float *last) {
  if (chunk < 1)
    chunk = n;
  for (int32_t done = 0; done < n; done += chunk) {
    const int32_t step = n - done < chunk ? n - done : chunk;
    const int32_t code =
        bg_forward(s, ids + done, step, logits ? logits + (size_t)done * vocab : last, logits != NULL);
    if (code != BG_OK)
      return code;
  }
  return BG_OK;
}

static int32_t print_logits(bg_session *s, const int32_t *ids, int32_t n, int32_t chunk, size_t vocab) {
  float *logits = malloc((size_t)n * vocab * sizeof *logits);
  int32_t code = logits ? feed(s, ids, n, chunk, vocab, logits, NULL) : BG_E_MEMORY;
  if (code == BG_OK && fwrite(logits, vocab * sizeof *logits, (size_t)n, stdout) != (size_t)n)
    code = BG_E_IO;
  free(logits);
  return code;
}

static int32_t print_tokens(bg_session *s, const int32_t *ids, int32_t n, int32_t chunk, size_t vocab,
                            int32_t count) {
  const bg_sampling greedy = {.temperature = 0, .top_p = 1, .repeat_penalty = 1};
  float *logits = malloc(vocab * sizeof *logits);
  int32_t code = logits ? feed(s, ids, n, chunk, vocab, NULL, logits) : BG_E_MEMORY;
  for (int32_t i = 0; i < count && code == BG_OK; i++) {
    const int32_t id = bg_sample(s, &greedy, logits, NULL, 0, (uint64_t)i);
    if (id >= 0)
      printf("%d\n", id);
    code = id < 0 ? id : i + 1 < count ? bg_forward(s, &id, 1, logits, 0) : BG_OK;
  }
  free(logits);
  return code;
}

static int run_model(const char *path, int32_t count, const options *o) {
  bg_model *model = NULL;
  bg_session *session = NULL;
  int32_t *ids = NULL;
  const int32_t n = read_ids(&ids);
  int32_t code = n < 0 ? BG_E_MEMORY : n == 0 ? BG_E_ARGUMENT : bg_open(path, isa_number(o->isa), &model);
  if (code == BG_OK)
    code =
        bg_session_open(model, o->threads, o->context ? o->context : bg_context(model), o->cache, &session);
  if (code == BG_OK) {
    const size_t vocab = (size_t)bg_vocab(model);
    code = count < 0 ? print_logits(session, ids, n, o->chunk, vocab)
                     : print_tokens(session, ids, n, o->chunk, vocab, count);
  }
  bg_session_close(session);
  bg_close(model);
  free(ids);
  return code == BG_OK ? 0 : fail(path, bg_strerror(code));
}

static int32_t run_call(int32_t isa, int32_t index, int32_t n, int32_t threads) {
  bg_kernel_info k;
  int32_t code = bg_kernel_get(isa, index, &k);
  if (code != BG_OK || n < 1)
    return BG_E_ARGUMENT;
  const size_t w_bytes = (size_t)k.weight_bytes, q_bytes = (size_t)n * (size_t)k.row_bytes;
  const size_t y_bytes = (size_t)n * (size_t)k.m_pad * sizeof(int32_t);
  uint8_t *w = malloc(w_bytes);
  int8_t *q = malloc(q_bytes);
  int32_t *y = malloc(y_bytes);
  if (!w || !q || !y)
    code = BG_E_MEMORY;
  else if (fread(w, 1, w_bytes, stdin) != w_bytes || fread(q, 1, q_bytes, stdin) != q_bytes)
    code = BG_E_IO;
  else
    code = bg_kernel_run(isa, index, w, q, n, y, threads);
  if (code == BG_OK && fwrite(y, 1, y_bytes, stdout) != y_bytes)
    code = BG_E_IO;
  free(w);
  free(q);
  free(y);
  return code;
}

static int run_kernels(const char *name, const options *o) {
  const int32_t isa = isa_number(name);
  int32_t call[2];
  while (fread(call, sizeof call, 1, stdin) == 1) {
    const int32_t code = run_call(isa, call[0], call[1], o->threads);
    if (code != BG_OK)
      return fail(name, bg_strerror(code));
  }
  return 0;
}

int main(int argc, char **argv) {
  options o;
  os_program(&argc, &argv);
  if (argc == 2 && strcmp(argv[1], "info") == 0)
    return info();
  if (argc >= 3 && strcmp(argv[1], "logits") == 0)
    return parse(argc - 3, argv + 3, &o) || run_model(argv[2], -1, &o);
  if (argc >= 4 && strcmp(argv[1], "generate") == 0)
    return parse(argc - 4, argv + 4, &o) || run_model(argv[2], atoi(argv[3]) < 0 ? 0 : atoi(argv[3]), &o);
  if (argc >= 3 && strcmp(argv[1], "kernels") == 0)
    return parse(argc - 3, argv + 3, &o) || run_kernels(argv[2], &o);
  return fail("usage",
              "info | logits MODEL [options] | generate MODEL COUNT [options] | kernels ISA [--threads N]");
}
