// batch_lab.c: sequences together and alone, for the sanitizers. MODEL THREADS: takes a packed model, gives
// random tokens to sequences that share, in steps of random length, and prints how many logits had other bits
// than those of a session of its own, or how many tokens were chosen that those logits would not have chosen.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitgen.h"

enum { SEQUENCES = 5, STEPS = 12, LONGEST = 150 };

static bg_session *together[SEQUENCES], *alone[SEQUENCES];

static int32_t below(int32_t n) { return rand() % n; }

// What the last `count` of n tokens, whose logits are given, would choose, beside what was chosen.
static int32_t other_choices(bg_session *session, const bg_choice *ask, const int32_t *chosen,
                             const float *logits, int32_t n, int32_t vocab) {
  int32_t different = 0;
  for (int32_t i = 0; i < ask->count; i++)
    different += chosen[i] != bg_sample(session, ask->sampling, logits + (size_t)(n - ask->count + i) * vocab,
                                        ask->history, ask->n_history - ask->count + 1 + i, ask->step + i);
  return different;
}

// One step of some of the sequences; the number of differences, or a negative code.
static int32_t step(int32_t vocab) {
  static const bg_sampling hows[] = {
      {.temperature = 0, .top_p = 1, .repeat_penalty = 1},
      {.temperature = 0.8f, .top_k = 20, .top_p = 0.9f, .repeat_penalty = 1.2f, .repeat_last = 8, .seed = 3},
      {.temperature = 1, .top_p = 1, .repeat_penalty = 1},
  };
  static int32_t tokens[SEQUENCES * LONGEST], chosen[SEQUENCES * LONGEST];
  bg_session *some[SEQUENCES];
  bg_choice asks[SEQUENCES];
  int32_t lengths[SEQUENCES], which[SEQUENCES], count = 0, total = 0;
  const int32_t kinds = 1 + below(3); // in this step: 1 or 2 need few of the logits
  for (int32_t i = 0; i < SEQUENCES; i++)
    if (count == 0 || below(4)) {
      which[count] = (i + 2) % SEQUENCES;
      some[count] = together[which[count]];
      lengths[count] = below(3) ? 1 + below(3) : 1 + below(LONGEST);
      asks[count] =
          (bg_choice){&hows[below(kinds)], tokens + total, lengths[count], 1 + below(lengths[count]), 5};
      total += lengths[count++];
    }
  for (int32_t i = 0; i < total; i++)
    tokens[i] = below(vocab);
  float *got = malloc((size_t)total * vocab * sizeof *got),
        *want = malloc((size_t)total * vocab * sizeof *want);
  const int32_t what = below(4); // logits of the last tokens, of all, and in half of the steps choices
  const size_t row = (size_t)vocab * sizeof *got;
  int32_t code = what < 2 ? bg_forward_batch(some, count, tokens, lengths, got, what)
                          : bg_next_batch(some, count, tokens, lengths, asks, chosen);
  int32_t different = 0, done = 0;
  for (int32_t i = 0, first = 0; i < count && code == BG_OK; first += lengths[i++]) {
    code = bg_forward(alone[which[i]], tokens + first, lengths[i], want, 1);
    if (what == 0)
      different += memcmp(got + (size_t)i * vocab, want + (size_t)(lengths[i] - 1) * vocab, row) != 0;
    else if (what == 1)
      different += memcmp(got + (size_t)first * vocab, want, lengths[i] * row) != 0;
    else
      different += other_choices(alone[which[i]], &asks[i], chosen + done, want, lengths[i], vocab);
    done += asks[i].count;
    if (below(3) == 0) { // as after a refused guess
      const int32_t back = bg_position(some[i]) - below(lengths[i] + 1);
      bg_rewind(some[i], back);
      bg_rewind(alone[which[i]], back);
    }
  }
  free(got);
  free(want);
  return code == BG_OK ? different : code;
}

int main(int argc, char **argv) {
  bg_model *model = NULL;
  int32_t result = argc == 3 ? bg_open(argv[1], -1, &model) : BG_E_ARGUMENT;
  for (int32_t i = 0; i < SEQUENCES && result == BG_OK; i++) {
    const int32_t context = bg_context(model) - 7 * i;
    result = i ? bg_session_share(together[0], context, &together[i])
               : bg_session_open(model, atoi(argv[2]), context, BG_CACHE_F16, &together[0]);
    if (result == BG_OK)
      result = bg_session_open(model, 1, context, BG_CACHE_F16, &alone[i]);
  }
  for (int32_t i = 0; i < STEPS && result == BG_OK; i++)
    result = step(bg_vocab(model));
  for (int32_t i = 0; i < SEQUENCES; i++) {
    bg_session_close(together[i]);
    bg_session_close(alone[i]);
  }
  bg_close(model);
  printf("%d\n", result);
  return result != 0;
}
