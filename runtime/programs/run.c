// run.c: a program that continues a prompt, with no Python: text on stdout, speed on stderr.
//
// Its weights lie in PROGRAM.bgpk, or behind the program in the same file. The options that it has, their
// defaults and the text are those of `bitgen run`.
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bitgen.h"
#include "core/model.h"
#include "core/sampler.h"
#include "programs/options.h"
#include "programs/system.h"
#include "text/tokenizer.h"
#include "text/vocabulary.h"

// ---- options ----------------------------------------------------------------------------------------------

static struct {
  const char *prompt, *model, *isa, *cache;
  double max_tokens, threads, context, temp, top_k, top_p, min_p, repeat_penalty;
  option_seed seed;
  int ignore_eos, info, help;
} o = {
    .cache = "f16",
    .max_tokens = 256,
    .temp = -1, // not given; likewise
    .top_k = -1,
    .top_p = -1,
    .min_p = -1,
    .repeat_penalty = -1,
};

#define ELSEWHERE "this program has not got it; `bitgen run` has"
#define BUILT_IN "is decided when the program is written: `bitgen build --standalone` has it"
#define ABSENT(name, letter, why)                                                                            \
  { name, letter, OPTION_ABSENT, NULL, 0, 0, why }

static const option options[] = {
    {"--prompt", "-p", OPTION_TEXT, &o.prompt, 0, 0, "text to continue; - reads it from standard input"},
    {"--max-tokens", "-n", OPTION_COUNT, &o.max_tokens, 0, INT32_MAX, "tokens to add at most [256]"},
    {"--threads", "-t", OPTION_COUNT, &o.threads, 1, 1024, "[all CPUs]"},
    {"--temp", "", OPTION_NUMBER, &o.temp, 0, FLT_MAX, "temperature; 0 is greedy [the model's]"},
    {"--top-k", "", OPTION_COUNT, &o.top_k, 0, INT32_MAX,
     "keep the k likeliest tokens; 0: all [the model's]"},
    {"--top-p", "", OPTION_NUMBER, &o.top_p, FLT_MIN, 1,
     "keep the likeliest tokens of this probability; 1: all [the model's]"},
    {"--min-p", "", OPTION_NUMBER, &o.min_p, 0, 1,
     "drop tokens below this share of the likeliest one's [the model's]"},
    {"--repeat-penalty", "", OPTION_NUMBER, &o.repeat_penalty, 1e-30, 1e30,
     "over the last 64 tokens; 1: off [the model's, which --info shows]"},
    {"--seed", "", OPTION_SEED, &o.seed, 0, 0, "same seed, same text [random]"},
    {"--ignore-eos", "", OPTION_SWITCH, &o.ignore_eos, 0, 0, "go on after the model's stop tokens"},
    {"--context", "", OPTION_COUNT, &o.context, 1, INT32_MAX,
     "tokens of prompt and text at most [the model's]"},
    {"--cache", "", OPTION_TEXT, &o.cache, 0, 0, "keys and values: f16, or int8 in half the bytes [f16]"},
    {"--isa", "", OPTION_TEXT, &o.isa, 0, 0, "instruction-set level [the best this CPU executes]"},
    {"--model", "-m", OPTION_TEXT, &o.model, 0, 0, "weights that `bitgen build --standalone` wrote"},
    {"--info", "", OPTION_SWITCH, &o.info, 0, 0, "what this program and its model are"},
    {"--help", "-h", OPTION_SWITCH, &o.help, 0, 0, "this text"},
    ABSENT("--file", "-f", ELSEWHERE),
    ABSENT("--batch", "", ELSEWHERE),
    ABSENT("--parallel", "", ELSEWHERE),
    ABSENT("--system", "", ELSEWHERE),
    ABSENT("--chat-template", "", ELSEWHERE),
    ABSENT("--stop", "", ELSEWHERE),
    ABSENT("--prompt-lookup", "", ELSEWHERE),
    ABSENT("--prompt-cache", "", ELSEWHERE),
    ABSENT("--logprobs", "", ELSEWHERE),
    ABSENT("--quiet", "-q", ELSEWHERE),
    ABSENT("--json", "", ELSEWHERE),
    ABSENT("--yes", "-y", ELSEWHERE),
    ABSENT("--head", "", BUILT_IN),
    ABSENT("--activation", "", BUILT_IN),
    ABSENT("--tl-tiles", "", BUILT_IN),
    ABSENT("--i2s-layout", "", BUILT_IN),
};
enum { OPTIONS = sizeof options / sizeof *options };

static const char *program = "run"; // its file's name

static int fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s%s%s\n", program, what, *why ? ": " : "", why);
  return 1;
}

static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }

static int32_t cache_number(const char *name) {
  return strcmp(name, "f16") == 0 ? BG_CACHE_F16 : strcmp(name, "int8") == 0 ? BG_CACHE_I8 : -1;
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

// All of standard input, its line ends as Python reads them; NULL when memory is short.
static char *read_input(size_t *bytes) {
  size_t n = 0, room = 0, out = 0;
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
      text[out++] = text[i];
    else if (i + 1 == n || text[i + 1] != '\n')
      text[out++] = '\n';
  *bytes = out;
  return text;
}

// ---- the model --------------------------------------------------------------------------------------------

static bg_model *model;
static vocabulary tokens;
static int32_t isa = -1;
static char weights[4104]; // path of the file

// Open a file at the best level that runs here and has the file's layouts.
static int32_t open_file(const char *path) {
  int32_t code = BG_E_ISA;
  snprintf(weights, sizeof weights, "%s", path);
  os_guard_mapping(program, path);
  for (isa = 0; isa < bg_isa_count(); isa++) {
    if ((o.isa && strcmp(o.isa, bg_isa_name(isa)) != 0) || !bg_isa_runs(isa))
      continue;
    code = bg_open(path, isa, &model);
    if (code != BG_E_LAYOUT)
      return code;
  }
  return code;
}

static double given_or(double option, double by_file) { return option >= 0 ? option : by_file; }

// What the options say, and then what the file says.
static bg_sampling sampling_asked(void) {
  const bg_trailer *t = &model->trailer;
  return (bg_sampling){
      .temperature = (float)given_or(o.temp, t->temperature),
      .top_k = (int32_t)given_or(o.top_k, t->top_k),
      .top_p = (float)given_or(o.top_p, t->top_p),
      .min_p = (float)given_or(o.min_p, t->min_p),
      .repeat_penalty = (float)given_or(o.repeat_penalty, t->repeat_penalty),
      .repeat_last = t->repeat_last,
      .seed = o.seed.given ? o.seed.value : random_seed(),
  };
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
  if (vocabulary_open(&tokens, file, bytes) != BG_OK)
    return fail(weights, "holds no tokenizer; write it with `bitgen build --standalone`");
  const bg_sampling sampling = sampling_asked();
  if (!sampling_is_sane(&sampling))
    return fail(weights,
                "does not say how tokens are chosen; write it again with `bitgen build --standalone`");
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
         tokens.header->flags & BYTE_LEVEL ? "byte-level BPE" : "SentencePiece BPE", tokens.header->tokens);
  const bg_sampling s = sampling_asked();
  printf("sampling: --temp %g --top-k %d --top-p %g --min-p %g --repeat-penalty %g\n", (double)s.temperature,
         s.top_k, (double)s.top_p, (double)s.min_p, (double)s.repeat_penalty);
  for (int32_t i = 0; i < bg_isa_count(); i++)
    printf("level: %s, %s\n", bg_isa_name(i),
           i == isa         ? "taken"
           : bg_isa_runs(i) ? "runs here"
                            : "does not run here");
  printf("layouts: %s\n", c->layout);
}

// ---- the text ---------------------------------------------------------------------------------------------

// The token ids of a prompt, 1 to context - 1 of them; -1 when it fails. *ids is the caller's to free.
static int32_t encode_prompt(const char *text, size_t bytes, int32_t context, int32_t **ids) {
  const int32_t n = tokenizer_encode(&tokens, text, bytes, ids);
  if (n == BG_E_VALUE)
    fail("the prompt is not valid UTF-8", "");
  else if (n < 0)
    fail("the prompt", bg_strerror(n));
  else if (n == 0)
    fail("the prompt is empty and this model has no begin-of-text token", "give it some text");
  else if (n >= context)
    fprintf(stderr, "%s: the prompt has %d tokens, the context holds %d\n", program, n, context);
  else
    return n;
  return -1;
}

typedef struct {
  int32_t prompt_tokens, tokens;
  double prefill_s, decode_s;
  const char *stopped; // why the text ended, in the words of `bitgen run`
} progress;

// Choose up to `limit` tokens after the n in history, which has room for them, and print each as it comes.
static int32_t generate(bg_session *s, int32_t *history, int32_t n, int32_t limit,
                        const bg_sampling *sampling, progress *p) {
  text_stream stream = {.n = 0};
  int32_t code = BG_OK, id;
  p->prompt_tokens = limit ? n : 0;
  p->stopped = limit < (int32_t)o.max_tokens ? "context full" : "length";
  for (int32_t step = 0; step < limit; step++) {
    const double started = now();
    const int32_t fresh = step ? 1 : n; // tokens that the model has not seen
    code = bg_next(s, history + n + step - fresh, fresh, sampling, history, n + step, (uint64_t)step, &id, 1);
    *(step ? &p->decode_s : &p->prefill_s) += now() - started;
    if (code != BG_OK)
      break;
    if (!o.ignore_eos && is_stop(&tokens, id)) {
      p->stopped = "stop token";
      break;
    }
    history[n + step] = id;
    p->tokens++;
    tokenizer_decode(&tokens, id, &stream, stdout);
    fflush(stdout);
  }
  text_stream_end(&stream, stdout);
  puts("");
  return code;
}

// " at 12.5 tok/s", or nothing where no time was measured.
static void print_rate(int32_t count, double seconds, int digits) {
  if (count > 0 && seconds > 0)
    fprintf(stderr, " at %.*f tok/s", digits, count / seconds);
}

static void print_speed(const progress *p, double load_s, int32_t threads, uint64_t seed) {
  fprintf(stderr, "load %.2f s | prefill %d tokens", load_s, p->prompt_tokens);
  print_rate(p->prompt_tokens, p->prefill_s, 0);
  fprintf(stderr, " | decode %d tokens", p->tokens);
  print_rate(p->tokens - 1, p->decode_s, 1);
  fprintf(stderr, " | stopped: %s | %s on %s, %s head, %d threads, seed %llu\n", p->stopped, program,
          bg_isa_name(isa), head_name(), threads, (unsigned long long)seed);
}

static int continue_text(const char *text, size_t bytes, double load_s) {
  const bg_sampling sampling = sampling_asked();
  const int32_t threads = o.threads ? (int32_t)o.threads : os_cpus();
  const int32_t context = o.context ? (int32_t)o.context : bg_context(model);
  if (context > bg_context(model)) {
    fprintf(stderr, "%s: --context: must be a whole number from 1 to %d, for which the model was made\n",
            program, bg_context(model));
    return 1;
  }
  int32_t *history = NULL;
  const int32_t n = encode_prompt(text, bytes, context, &history);
  if (n < 0)
    return free(history), 1;
  const int32_t limit = min((int32_t)o.max_tokens, context - n + 1);
  int32_t *longer = realloc(history, ((size_t)n + (size_t)limit) * sizeof *history);
  history = longer ? longer : history;
  bg_session *session = NULL;
  progress p = {0};
  int32_t code =
      longer ? bg_session_open(model, threads, min(n + limit, context), cache_number(o.cache), &session)
             : BG_E_MEMORY;
  if (code == BG_OK) {
    fwrite(text, 1, bytes, stdout);
    code = generate(session, history, n, limit, &sampling, &p);
  }
  bg_session_close(session);
  free(history);
  if (code != BG_OK)
    return fail("cannot go on", bg_strerror(code));
  print_speed(&p, load_s, threads, sampling.seed);
  return ferror(stdout) ? fail("standard output", "cannot be written") : 0;
}

static int continue_prompt(double load_s) {
  if (strcmp(o.prompt, "-") != 0)
    return continue_text(o.prompt, strlen(o.prompt), load_s);
  size_t bytes;
  char *input = read_input(&bytes);
  if (!input)
    return fail("standard input", bg_strerror(BG_E_MEMORY));
  const int code = continue_text(input, bytes, load_s);
  free(input);
  return code;
}

// ---- the program ------------------------------------------------------------------------------------------

static int usage(void) {
  printf("usage: %s -p TEXT [options]\n\nContinue a text.\n\n", program);
  options_print(options, OPTIONS);
  return o.help ? 0 : 2;
}

static const char *file_name(const char *path) {
  const char *name = path;
  for (const char *p = path; *p; p++)
    if (*p == '/' || *p == '\\')
      name = p + 1;
  return name;
}

int main(int argc, char **argv) {
  const double started = now();
  option_error error;
  os_program(&argc, &argv);
  const char *self = os_own_path(argc ? argv[0] : program);
  program = file_name(self);
  if (options_parse(options, OPTIONS, argc, argv, &error))
    return fail(error.what, error.why), 2;
  if (o.help || (!o.prompt && !o.info))
    return usage();
  if (cache_number(o.cache) < 0)
    return fail("--cache", "must be f16 or int8"), 2;
  if (open_model(self))
    return 1;
  int code = 0;
  if (o.info)
    print_info();
  else
    code = continue_prompt(now() - started);
  bg_close(model);
  return code;
}
