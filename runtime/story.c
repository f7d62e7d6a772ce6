// story.c: a program that continues a prompt, with no Python: text on stdout, speed on stderr.
//
// Its weights lie in PROGRAM.bgpk, or behind the program in the same file. Options and text are those of
// `bitgen run`.
#include <errno.h>
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bitgen.h"
#include "model.h"
#include "os.h"
#include "tokenizer.h"
#include "vocabulary.h"

// ---- options ----------------------------------------------------------------------------------------------

static struct {
  const char *prompt, *model, *isa, *cache;
  double max_tokens, threads, context, temp, top_k, top_p, min_p, repeat_penalty;
  uint64_t seed;
  int seeded, ignore_eos, info, help;
} o = {
    .cache = "f16",
    .max_tokens = 256,
    .temp = 0.7,
    .top_k = 40,
    .top_p = 0.9,
    .repeat_penalty = 1.1,
};

enum { A_TEXT, A_COUNT, A_NUMBER, A_SEED, A_SWITCH };

static const struct option {
  const char *name, *letter;
  int kind;
  void *value;
  double least, most; // of a count or a number
  const char *help;
} options[] = {
    {"--prompt", "-p", A_TEXT, &o.prompt, 0, 0, "text to continue; - reads it from standard input"},
    {"--max-tokens", "-n", A_COUNT, &o.max_tokens, 0, INT32_MAX, "tokens to add at most [256]"},
    {"--threads", "-t", A_COUNT, &o.threads, 1, 1024, "[all CPUs]"},
    {"--temp", "", A_NUMBER, &o.temp, 0, FLT_MAX, "temperature; 0 is greedy [0.7]"},
    {"--top-k", "", A_COUNT, &o.top_k, 0, INT32_MAX, "keep the k likeliest tokens; 0: all [40]"},
    {"--top-p", "", A_NUMBER, &o.top_p, FLT_MIN, 1,
     "keep the likeliest tokens of this probability; 1: all [0.9]"},
    {"--min-p", "", A_NUMBER, &o.min_p, 0, 1, "drop tokens below this share of the likeliest one's [0]"},
    {"--repeat-penalty", "", A_NUMBER, &o.repeat_penalty, FLT_MIN, FLT_MAX, "over the last 64; 1: off [1.1]"},
    {"--seed", "", A_SEED, &o.seed, 0, 0, "same seed, same text [random]"},
    {"--ignore-eos", "", A_SWITCH, &o.ignore_eos, 0, 0, "go on after the model's stop tokens"},
    {"--context", "", A_COUNT, &o.context, 1, INT32_MAX, "tokens of prompt and text at most [the model's]"},
    {"--cache", "", A_TEXT, &o.cache, 0, 0, "keys and values: f16, or int8 in half the bytes [f16]"},
    {"--isa", "", A_TEXT, &o.isa, 0, 0, "instruction-set level [the best this CPU executes]"},
    {"--model", "-m", A_TEXT, &o.model, 0, 0, "weights that `bitgen build --standalone` wrote"},
    {"--info", "", A_SWITCH, &o.info, 0, 0, "what this program and its model are"},
    {"--help", "-h", A_SWITCH, &o.help, 0, 0, "this text"},
};
enum { OPTIONS = sizeof options / sizeof *options };

static const char *program = "story"; // its file's name

static int fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s%s%s\n", program, what, *why ? ": " : "", why);
  return 1;
}

static int usage(void) {
  printf("usage: %s -p TEXT [options]\n\nContinue a text.\n\n", program);
  for (int i = 0; i < OPTIONS; i++)
    printf("  %2s %-17s%s\n", options[i].letter, options[i].name, options[i].help);
  return 0;
}

static int set_option(const struct option *option, const char *value) {
  char *end = NULL, why[120];
  errno = 0;
  if (option->kind == A_TEXT) {
    *(const char **)option->value = value;
    return 0;
  }
  if (option->kind == A_SEED) {
    o.seed = strtoull(value, &end, 10);
    o.seeded = 1;
    if (end > value && !*end && errno == 0 && '0' <= *value && *value <= '9')
      return 0;
    return fail(option->name, "must be a whole number from 0 to 2^64 - 1");
  }
  const double number = strtod(value, &end);
  if (end > value && !*end && number >= option->least && number <= option->most &&
      (option->kind == A_NUMBER || number == (double)(int32_t)number)) {
    *(double *)option->value = number;
    return 0;
  }
  int n = snprintf(why, sizeof why, "must be a %snumber ", option->kind == A_COUNT ? "whole " : "");
  n += option->least == FLT_MIN ? snprintf(why + n, sizeof why - (size_t)n, "above 0")
                                : snprintf(why + n, sizeof why - (size_t)n, "from %g", option->least);
  if (option->most < INT32_MAX)
    snprintf(why + n, sizeof why - (size_t)n, " to %g", option->most);
  return fail(option->name, why);
}

static int is_named(const struct option *option, const char *name, size_t n) {
  return n && ((strlen(option->name) == n && memcmp(option->name, name, n) == 0) ||
               (strlen(option->letter) == n && memcmp(option->letter, name, n) == 0));
}

static int parse(int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    const char *equals = argv[i][0] == '-' && argv[i][1] == '-' ? strchr(argv[i], '=') : NULL;
    const size_t n = equals ? (size_t)(equals - argv[i]) : strlen(argv[i]);
    int which = 0;
    while (which < OPTIONS && !is_named(&options[which], argv[i], n))
      which++;
    if (which == OPTIONS)
      return fail(argv[i], "no such option; --help lists them");
    if (options[which].kind == A_SWITCH && equals)
      return fail(options[which].name, "takes no value");
    if (options[which].kind == A_SWITCH) {
      *(int *)options[which].value = 1;
      continue;
    }
    const char *value = equals ? equals + 1 : ++i < argc ? argv[i] : NULL;
    if (!value)
      return fail(options[which].name, "its value is missing");
    if (set_option(&options[which], value))
      return 1;
  }
  return 0;
}

// ---- what the system knows --------------------------------------------------------------------------------

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint32_t random_seed(void) {
  uint32_t seed = (uint32_t)time(NULL) * 2654435761u;
  FILE *source = fopen("/dev/urandom", "rb");
  if (source && fread(&seed, sizeof seed, 1, source) != 1)
    seed ^= 1;
  if (source)
    fclose(source);
  return seed;
}

// ---- the model --------------------------------------------------------------------------------------------

static bg_model *model;
static vocabulary words;
static int32_t isa = -1;
static char weights[4104];

// With the best level that runs here and has the file's layouts.
static int32_t open_file(const char *path) {
  int32_t code = BG_E_ISA;
  snprintf(weights, sizeof weights, "%s", path);
  for (isa = 0; isa < bg_isa_count(); isa++) {
    if ((o.isa && strcmp(o.isa, bg_isa_name(isa)) != 0) || !bg_isa_runs(isa))
      continue;
    code = bg_open(path, isa, &model);
    if (code != BG_E_LAYOUT)
      return code;
  }
  return code;
}

static int open_model(const char *self) {
  char beside[4104];
  snprintf(beside, sizeof beside, "%s.bgpk", self);
  int32_t code = o.model ? open_file(o.model) : open_file(self);
  if (!o.model && code == BG_E_FORMAT) // nothing behind the program
    code = open_file(beside);
  if (code == BG_E_FORMAT)
    return fail(weights, "not a packed model, or damaged; write it again with `bitgen build --standalone`");
  if (code != BG_OK)
    return fail(code == BG_E_ISA && o.isa ? o.isa : weights, bg_strerror(code));
  size_t bytes;
  const void *file = bg_vocabulary(model, &bytes);
  if (vocabulary_open(&words, file, bytes) != BG_OK)
    return fail(weights, "holds no tokenizer; write it with `bitgen build --standalone`");
  return 0;
}

static const char *head_name(void) {
  static const char *const names[HEAD_KINDS] = {"f16", "f16", "int8", "certified", "certified"};
  return names[model->config.head];
}

static void print_info(void) {
  const bg_header *c = &model->config;
  printf("weights: %s, %.1f MB\n", weights, (double)model->bytes / 1e6);
  printf("shape: %d layers, hidden %d, heads %d (%d of keys and values), FFN %d, vocabulary %d, context %d\n",
         c->layers, c->hidden, c->heads, c->kv_heads, c->intermediate, c->vocab, c->context);
  printf("head: %s\n", head_name());
  printf("tokenizer: %s, %u tokens\n",
         words.header->flags & BYTE_LEVEL ? "byte-level BPE" : "SentencePiece BPE", words.header->tokens);
  for (int32_t i = 0; i < bg_isa_count(); i++)
    printf("level: %s, %s\n", bg_isa_name(i),
           i == isa         ? "taken"
           : bg_isa_runs(i) ? "runs here"
                            : "does not run here");
  printf("layouts: %s\n", c->layout);
}

// ---- the text ---------------------------------------------------------------------------------------------

// All of standard input, its line ends as Python reads them; NULL when memory is short.
static char *read_input(size_t *bytes) {
  size_t n = 0, room = 0, kept = 0;
  char *text = NULL;
  do {
    if (n + 4096 > room) {
      room = 2 * room + 4096;
      char *more = realloc(text, room);
      if (!more)
        return free(text), NULL;
      text = more;
    }
    n += fread(text + n, 1, room - n, stdin);
  } while (!feof(stdin) && !ferror(stdin));
  for (size_t i = 0; i < n; i++)
    if (text[i] != '\r')
      text[kept++] = text[i];
    else if (i + 1 == n || text[i + 1] != '\n')
      text[kept++] = '\n';
  *bytes = kept;
  return text;
}

typedef struct {
  int32_t prompt_tokens, tokens;
  double prefill_s, decode_s;
} progress;

// Choose up to `limit` tokens after the n in history, which has room for them, and print each as it comes.
static int32_t generate(bg_session *s, int32_t *history, int32_t n, int32_t limit, const bg_sampling *how,
                        progress *p) {
  text_stream stream = {.n = 0};
  int32_t code = BG_OK, id;
  p->prompt_tokens = limit ? n : 0;
  for (int32_t step = 0; step < limit; step++) {
    const double started = now();
    const int32_t fresh = step ? 1 : n; // tokens that the model has not seen
    code = bg_next(s, history + n + step - fresh, fresh, how, history, n + step, (uint64_t)step, &id, 1);
    *(step ? &p->decode_s : &p->prefill_s) += now() - started;
    if (code != BG_OK || (!o.ignore_eos && is_stop(&words, id)))
      break;
    history[n + step] = id;
    p->tokens++;
    tokenizer_decode(&words, id, &stream, stdout);
    fflush(stdout);
  }
  text_stream_end(&stream, stdout);
  puts("");
  return code;
}

static double rate(int32_t tokens, double seconds) { return tokens / (seconds > 1e-9 ? seconds : 1e-9); }

static int32_t cache_number(const char *name) {
  return strcmp(name, "f16") == 0 ? BG_CACHE_F16 : strcmp(name, "int8") == 0 ? BG_CACHE_I8 : -1;
}

static int tell(const char *text, size_t bytes, double load_s) {
  const bg_sampling how = {(float)o.temp,
                           (int32_t)o.top_k,
                           (float)o.top_p,
                           (float)o.min_p,
                           (float)o.repeat_penalty,
                           64,
                           o.seeded ? o.seed : random_seed()};
  const int32_t threads = o.threads ? (int32_t)o.threads : os_cpus();
  const int32_t most = o.context && o.context < bg_context(model) ? (int32_t)o.context : bg_context(model);
  int32_t *ids = NULL;
  const int32_t n = tokenizer_encode(&words, text, bytes, &ids);
  if (n == BG_E_VALUE)
    return fail("the prompt is not valid UTF-8", "");
  if (n < 0)
    return fail("the prompt", bg_strerror(n));
  if (n == 0)
    return fail("the prompt is empty and this model has no begin-of-text token", "give it some text");
  if (n >= most) {
    free(ids);
    fprintf(stderr, "%s: the prompt has %d tokens, the context holds %d\n", program, n, most);
    return 1;
  }
  const int32_t limit = (int32_t)o.max_tokens < most - n + 1 ? (int32_t)o.max_tokens : most - n + 1;
  int32_t *history = realloc(ids, ((size_t)n + (size_t)limit) * sizeof *history);
  bg_session *session = NULL;
  progress p = {0};
  int32_t code = history ? bg_session_open(model, threads, n + limit < most ? n + limit : most,
                                           cache_number(o.cache), &session)
                         : BG_E_MEMORY;
  if (code == BG_OK) {
    fwrite(text, 1, bytes, stdout);
    code = generate(session, history, n, limit, &how, &p);
  }
  bg_session_close(session);
  free(history ? history : ids);
  if (code != BG_OK)
    return fail("cannot go on", bg_strerror(code));
  fprintf(
      stderr,
      "load %.2f s | prefill %d tokens at %.0f tok/s | decode %d tokens at %.1f tok/s | %s on %s, %s head, "
      "%d threads, seed %llu\n",
      load_s, p.prompt_tokens, rate(p.prompt_tokens, p.prefill_s), p.tokens,
      rate(p.tokens > 1 ? p.tokens - 1 : 0, p.decode_s), program, bg_isa_name(isa), head_name(), threads,
      (unsigned long long)how.seed);
  return ferror(stdout) ? fail("standard output", "cannot be written") : 0;
}

int main(int argc, char **argv) {
  const double started = now();
  os_program(&argc, &argv);
  const char *self = os_own_path(argc ? argv[0] : program);
  for (const char *p = program = self; *p; p++)
    if (*p == '/' || *p == '\\')
      program = p + 1;
  if (parse(argc, argv))
    return 2;
  if (o.help || (!o.prompt && !o.info))
    return usage(), o.help ? 0 : 2;
  if (cache_number(o.cache) < 0)
    return fail("--cache", "must be f16 or int8"), 2;
  if (open_model(self))
    return 1;
  int code = 0;
  if (o.info) {
    print_info();
  } else {
    const double load_s = now() - started;
    size_t bytes = strlen(o.prompt);
    char *input = strcmp(o.prompt, "-") == 0 ? read_input(&bytes) : NULL;
    if (!input && strcmp(o.prompt, "-") == 0)
      code = fail("standard input", bg_strerror(BG_E_MEMORY));
    else
      code = tell(input ? input : o.prompt, bytes, load_s);
    free(input);
  }
  bg_close(model);
  return code;
}
