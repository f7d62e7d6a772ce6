// batch_lab.c: sequences together and alone, for the sanitizers. MODEL THREADS CACHE: takes a packed model, gives
// random tokens to sequences that share, in steps of random length, takes their keys and values out of the cache
// and into it again, and prints how many logits had other bits than those of a session of its own, how many
// tokens were chosen that those logits would not have chosen, and how many sessions with a wrong request had
// another code than theirs or did not stay as they were. In the end it continues from positions of any bytes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitgen.h"

enum { SEQUENCES = 5, STEPS = 18, LONGEST = 150 };

static bg_session *together[SEQUENCES], *alone[SEQUENCES];

static int32_t below(int32_t n) { return rand() % n; }

// Some of the sequences and what they append and choose in one step; codes that they must get.
typedef struct {
  int32_t n, total, which[SEQUENCES];
  bg_session *sessions[SEQUENCES];
  int32_t lengths[SEQUENCES], codes[SEQUENCES];
  bg_choice requests[SEQUENCES];
  int32_t tokens[SEQUENCES * LONGEST];
} batch;

static void fill(batch *b, int32_t vocab) {
  static const bg_sampling samplings[] = {
      {.temperature = 0, .top_p = 1, .repeat_penalty = 1},
      {.temperature = 0.8f, .top_k = 20, .top_p = 0.9f, .repeat_penalty = 1.2f, .repeat_last = 8, .seed = 3},
      {.temperature = 1, .top_p = 1, .repeat_penalty = 1},
  };
  const int32_t kinds = 1 + below(3); // in this step: 1 or 2 need few of the logits
  *b = (batch){0};
  for (int32_t i = 0; i < SEQUENCES; i++)
    if (b->n == 0 || below(4)) {
      const int32_t n = below(8) ? 1 + below(5) : 1 + below(LONGEST);
      b->which[b->n] = (i + 2) % SEQUENCES;
      b->sessions[b->n] = together[b->which[b->n]];
      b->lengths[b->n] = n;
      b->requests[b->n] = (bg_choice){&samplings[below(kinds)], b->tokens + b->total, n, 1 + below(n), 5, 99};
      b->total += n;
      b->n++;
    }
  for (int32_t i = 0; i < b->total; i++)
    b->tokens[i] = below(vocab);
}

// Make a request that is wrong in some way, or only appends; the code that it must get.
static int32_t spoil(bg_choice *request, int32_t *tokens, int32_t length, int32_t vocab) {
  static const bg_sampling insane = {.temperature = -1, .top_p = 1, .repeat_penalty = 1};
  switch (below(6)) {
  case 0:
    tokens[below(length)] = below(2) ? vocab : -1;
    return BG_E_TOKEN;
  case 1:
    request->count = below(2) ? length + 1 : -1;
    return BG_E_ARGUMENT;
  case 2:
    request->n_history = request->count - 1;
    return BG_E_ARGUMENT;
  case 3:
    request->sampling = &insane;
    return BG_E_ARGUMENT;
  default:
    *request = (bg_choice){.count = 0, .code = 99};
    return BG_OK;
  }
}

// Append the tokens of a sequence alone; logits [rows][vocab] of the last ones.
static int32_t forward_alone(const batch *b, int32_t i, int32_t first, int32_t rows, float *logits) {
  bg_session *session = alone[b->which[i]];
  const int32_t before = b->lengths[i] - rows;
  int32_t code = before ? bg_forward(session, b->tokens + first, before, NULL, 0) : BG_OK;
  if (code == BG_OK && rows)
    code = bg_forward(session, b->tokens + first + before, rows, logits, 1);
  return code;
}

// How many of a sequence's choices are others than those from its logits [count][vocab].
static int32_t other_choices(bg_session *session, const bg_choice *r, const int32_t *chosen,
                             const float *logits, int32_t vocab) {
  int32_t different = 0;
  for (int32_t i = 0; i < r->count; i++, logits += vocab)
    different += chosen[i] != bg_sample(session, r->sampling, logits, r->history,
                                        r->n_history - r->count + 1 + i, r->step + i);
  return different;
}

// Choices of a step beside those of each sequence alone; the number of differences, or a negative code.
static int32_t choose(batch *b, float *logits, int32_t vocab) {
  int32_t chosen[SEQUENCES * (LONGEST + 1)], before[SEQUENCES], different = 0, done = 0;
  for (int32_t i = 0, first = 0; i < b->n; first += b->lengths[i++]) {
    before[i] = bg_position(b->sessions[i]);
    if (below(2))
      b->codes[i] = spoil(&b->requests[i], b->tokens + first, b->lengths[i], vocab);
  }
  int32_t code = bg_next_batch(b->sessions, b->n, b->tokens, b->lengths, b->requests, chosen);
  for (int32_t i = 0, first = 0; i < b->n && code == BG_OK; first += b->lengths[i++]) {
    const bg_choice *r = &b->requests[i];
    different += r->code != b->codes[i];
    if (r->code == BG_OK) {
      code = forward_alone(b, i, first, r->count, logits);
      different += other_choices(alone[b->which[i]], r, chosen + done, logits, vocab);
    }
    different += bg_position(b->sessions[i]) - before[i] != (r->code == BG_OK ? b->lengths[i] : 0);
    done += r->count > 0 ? r->count : 0;
  }
  return code == BG_OK ? different : code;
}

// Logits of a step, of the last tokens or of all, beside those of each sequence alone; likewise.
static int32_t compare(batch *b, int32_t all, float *got, float *want, int32_t vocab) {
  const size_t row = (size_t)vocab * sizeof *got;
  int32_t different = 0;
  int32_t code = bg_forward_batch(b->sessions, b->n, b->tokens, b->lengths, got, all);
  for (int32_t i = 0, first = 0; i < b->n && code == BG_OK; first += b->lengths[i++]) {
    const int32_t rows = all ? b->lengths[i] : 1;
    code = forward_alone(b, i, first, rows, want);
    different += memcmp(got, want, rows * row) != 0;
    got += (size_t)rows * vocab;
  }
  return code == BG_OK ? different : code;
}

// Forget the positions after the first `kept`; the state, where there is one, need not be theirs.
static void forget(bg_session *session, int32_t kept, const uint8_t *state) {
  if (bg_rewind(session, kept) == BG_E_STATE)
    bg_state_load(session, kept, state);
}

// Take a sequence's positions out of the cache in two pieces, forget the later ones and load them again.
static int32_t reload(bg_session *session) {
  const int32_t n = bg_position(session), kept = below(n + 1), middle = kept + below(n - kept + 1);
  const size_t bytes = (size_t)bg_position_bytes(session);
  uint8_t *first = malloc(bytes * (middle - kept)), *second = malloc(bytes * (n - middle));
  uint8_t *state = malloc((size_t)bg_state_bytes(session));
  int32_t code = first && second && state ? bg_state_save(session, state) : BG_E_MEMORY;
  if (code == BG_OK)
    code = bg_session_save(session, kept, middle - kept, first);
  if (code == BG_OK)
    code = bg_session_save(session, middle, n - middle, second);
  if (code == BG_OK)
    forget(session, kept, state);
  if (code == BG_OK)
    code = bg_session_load(session, middle - kept, first);
  if (code == BG_OK)
    code = bg_session_load(session, n - middle, second);
  if (code == BG_OK)
    code = bg_state_load(session, n, state);
  free(first);
  free(second);
  free(state);
  return code;
}

// Take back as many as `most` of the latest tokens of two sessions that hold the same, as after a refused guess. A
// state that cannot go so far stays, or is the other session's.
static int32_t take_back(bg_session *session, bg_session *same, int32_t most) {
  const int32_t position = bg_position(session);
  const int32_t back = position - below((most < position ? most : position) + 1);
  int32_t code = bg_rewind(session, back);
  if (code != BG_OK || bg_rewind(same, back) == BG_OK)
    return code == BG_E_STATE ? BG_OK : code;
  uint8_t *state = malloc((size_t)bg_state_bytes(session));
  code = state ? bg_state_save(session, state) : BG_E_MEMORY;
  if (code == BG_OK)
    code = bg_state_load(same, back, state);
  free(state);
  return code;
}

// One step of some of the sequences.
static int32_t step(int32_t vocab) {
  static batch b;
  fill(&b, vocab);
  const size_t bytes = (size_t)b.total * vocab * sizeof(float);
  float *got = malloc(bytes), *want = malloc(bytes);
  const int32_t what = below(8); // 0, 1: logits of the last tokens, of all; else choices
  int32_t result = what < 2 ? compare(&b, what, got, want, vocab) : choose(&b, want, vocab);
  for (int32_t i = 0; i < b.n && result == BG_OK; i++)
    if (below(3) == 0)
      result = reload(b.sessions[i]);
    else if (below(3) == 0)
      result = take_back(b.sessions[i], alone[b.which[i]], b.lengths[i]);
  free(got);
  free(want);
  return result;
}

// Continue from positions and a state of any bytes: 300 random positions, then of one byte alone. What the logits are
// does not matter, nor whether they are numbers.
static int32_t continue_nonsense(bg_session *session, int32_t vocab) {
  static const int fills[] = {-1, 0x00, 0x7f, 0x80, 0xff}; // -1: random
  const bg_sampling greedy = {.top_p = 1, .repeat_penalty = 1};
  const int32_t n = 300, tokens[3] = {0, 1, 2};
  const size_t of_state = (size_t)bg_state_bytes(session);
  const size_t bytes = (size_t)bg_position_bytes(session) * n + of_state;
  uint8_t *positions = malloc(bytes);
  float *logits = malloc((size_t)vocab * 3 * sizeof *logits);
  int32_t code = positions && logits ? BG_OK : BG_E_MEMORY, chosen;
  for (size_t kind = 0; kind < sizeof fills / sizeof *fills && code == BG_OK; kind++) {
    for (size_t i = 0; i < bytes; i++)
      positions[i] = (uint8_t)(fills[kind] < 0 ? below(256) : fills[kind]);
    bg_rewind(session, 0);
    code = bg_session_load(session, n, positions + of_state);
    if (code == BG_OK)
      code = bg_state_load(session, n, positions);
    if (code == BG_OK)
      code = bg_forward(session, tokens, 3, logits, 1);
    if (code == BG_OK)
      code = bg_next(session, tokens, 1, &greedy, tokens, 1, 0, &chosen, 1);
    if (code == BG_E_VALUE)
      code = BG_OK;
  }
  free(positions);
  free(logits);
  return code;
}

int main(int argc, char **argv) {
  bg_model *model = NULL;
  int32_t result = argc == 4 ? bg_open(argv[1], -1, &model) : BG_E_ARGUMENT;
  for (int32_t i = 0; i < SEQUENCES && result == BG_OK; i++) {
    const int32_t context = bg_context(model) - 7 * i;
    result = i ? bg_session_share(together[0], context, &together[i])
               : bg_session_open(model, atoi(argv[2]), context, atoi(argv[3]), &together[0]);
    if (result == BG_OK)
      result = bg_session_open(model, 1, context, atoi(argv[3]), &alone[i]);
  }
  for (int32_t i = 0; i < STEPS && result == BG_OK; i++)
    result = step(bg_vocab(model));
  if (result == BG_OK)
    result = continue_nonsense(together[0], bg_vocab(model));
  for (int32_t i = 0; i < SEQUENCES; i++) {
    bg_session_close(together[i]);
    bg_session_close(alone[i]);
  }
  bg_close(model);
  printf("%d\n", result);
  return result != 0;
}
