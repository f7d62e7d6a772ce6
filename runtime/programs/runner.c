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
#include "core/pool.h"
#include "programs/options.h"
#include "programs/system.h"

static struct {
  const char *isa, *cache;
  double threads, context, chunk, count;
} o = {.cache = "f16", .threads = 1};

static const option options[] = {
    {"--isa", "", OPTION_TEXT, &o.isa, 0, 0, ""},
    {"--threads", "", OPTION_COUNT, &o.threads, 1, MAX_THREADS, ""},
    {"--context", "", OPTION_COUNT, &o.context, 1, INT32_MAX, ""},
    {"--chunk", "", OPTION_COUNT, &o.chunk, 1, INT32_MAX, ""},
    {"--cache", "", OPTION_TEXT, &o.cache, 0, 0, ""},
};
static const option count = {"COUNT", "", OPTION_COUNT, &o.count, 0, INT32_MAX, ""};

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
  for (int32_t i = 0; i < 3; i++)
    if (strcmp(names[i], name) == 0)
      return i;
  return -1;
}

// The options behind the first `words` arguments. 0, or 1 after saying what is wrong.
static int parse(int words, int argc, char **argv) {
  option_error error;
  if (options_parse(options, sizeof options / sizeof *options, argc - words + 1, argv + words - 1, &error))
    return fail(error.what, error.why);
  return cache_number(o.cache) < 0 ? fail("--cache", "must be f16, f32 or int8") : 0;
}

static int info(void) {
  for (int32_t i = 0; i < bg_isa_count(); i++)
    printf("%s\t%s\t%s\n", bg_isa_name(i), bg_isa_runs(i) ? "runs" : "does not run", bg_isa_layout(i));
  return 0;
}

// Read one id: 1; 0 at the end, -1 where a word is no whole number of 32 bits.
static int read_id(int32_t *id) {
  char word[16], *end;
  if (scanf("%15s", word) != 1)
    return 0;
  const long long value = strtoll(word, &end, 10);
  *id = (int32_t)value;
  return !*end && *id == value && strlen(word) < sizeof word - 1 ? 1 : -1;
}

// Read the ids on stdin. Their number, BG_E_ARGUMENT where there are none or other words, BG_E_MEMORY.
static int32_t read_ids(int32_t **out) {
  int32_t n = 0, room = 0, id;
  int found;
  *out = NULL;
  while ((found = read_id(&id)) == 1) {
    if (n == room) {
      room = room ? 2 * room : 256;
      int32_t *more = realloc(*out, (size_t)room * sizeof *more);
      if (!more)
        return BG_E_MEMORY;
      *out = more;
    }
    (*out)[n++] = id;
  }
  return found < 0 || n == 0 ? BG_E_ARGUMENT : n;
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

// Logits of all ids, or some greedy tokens after them.
static int run_model(const char *path, int generate) {
  bg_model *model = NULL;
  bg_session *session = NULL;
  int32_t *ids = NULL;
  os_guard_mapping("runner", path);
  const int32_t n = read_ids(&ids), chunk = (int32_t)o.chunk;
  int32_t code = n < 0 ? n : bg_open(path, isa_number(o.isa), &model);
  if (code == BG_OK)
    code = bg_session_open(model, (int32_t)o.threads, o.context ? (int32_t)o.context : bg_context(model),
                           cache_number(o.cache), &session);
  if (code == BG_OK) {
    const size_t vocab = (size_t)bg_vocab(model);
    code = generate ? print_tokens(session, ids, n, chunk, vocab, (int32_t)o.count)
                    : print_logits(session, ids, n, chunk, vocab);
  }
  bg_session_close(session);
  bg_close(model);
  free(ids);
  if (n == BG_E_ARGUMENT)
    return fail("standard input", "must be token ids, whole numbers with spaces between them");
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

static int run_kernels(const char *name) {
  const int32_t isa = isa_number(name);
  int32_t call[2];
  size_t bytes;
  while ((bytes = fread(call, 1, sizeof call, stdin)) == sizeof call) {
    const int32_t code = run_call(isa, call[0], call[1], (int32_t)o.threads);
    if (code != BG_OK)
      return fail(name, bg_strerror(code));
  }
  return bytes ? fail("standard input", "ends within a call") : 0;
}

int main(int argc, char **argv) {
  option_error error;
  os_program(&argc, &argv);
  if (argc == 2 && strcmp(argv[1], "info") == 0)
    return info();
  if (argc >= 3 && strcmp(argv[1], "logits") == 0)
    return parse(3, argc, argv) || run_model(argv[2], 0);
  if (argc >= 4 && strcmp(argv[1], "generate") == 0) {
    if (option_set(&count, argv[3], &error))
      return fail(error.what, error.why);
    return parse(4, argc, argv) || run_model(argv[2], 1);
  }
  if (argc >= 3 && strcmp(argv[1], "kernels") == 0)
    return parse(3, argc, argv) || run_kernels(argv[2]);
  return fail("usage",
              "info | logits MODEL [options] | generate MODEL COUNT [options] | kernels ISA [--threads N]");
}
