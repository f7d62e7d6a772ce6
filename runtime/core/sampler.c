// sampler.c: logits -> the next token. The same logits, seed and step give the same token on every host:
// exponentials are ours, sums are in double in a fixed order, ties go to the lowest id, and draws are
// numbered, not remembered.
#include "core/sampler.h"

#include <string.h>

#include "algorithms/search.h"

// Draw number `step` of a seed, uniform in [0, 1): SplitMix64's finaliser (Steele et al. 2014), twice.
static uint64_t mix(uint64_t a) {
  a = (a ^ a >> 30) * 0xbf58476d1ce4e5b9u;
  a = (a ^ a >> 27) * 0x94d049bb133111ebu;
  return a ^ a >> 31;
}
static double uniform(uint64_t seed, uint64_t step) {
  const uint64_t golden = 0x9e3779b97f4a7c15u;
  return (double)(mix(mix(seed + golden) + (step + 1) * golden) >> 11) * 0x1p-53;
}

// A candidate as one number: greater probability first, then the lower id.
static uint64_t candidate(float p, int32_t id) {
  uint32_t bits;
  memcpy(&bits, &p, sizeof bits); // p >= 0: floats order as their bits do
  return (uint64_t)bits << 32 | (0xffffffffu - (uint32_t)id);
}
static int32_t id_of(uint64_t candidate_) { return (int32_t)(0xffffffffu - (uint32_t)candidate_); }
static float p_of(uint64_t candidate_) {
  uint32_t bits = (uint32_t)(candidate_ >> 32);
  float p;
  memcpy(&p, &bits, sizeof p);
  return p;
}

#define HEAP_OF uint64_t
#define HEAP_ABOVE(a, b) ((a) > (b))
#include "algorithms/heap.h"

static void make_heap(uint64_t *heap, int32_t n) {
  for (int32_t i = n / 2; i-- > 0;)
    heap_sink(heap, (size_t)n, (size_t)i, heap[i]);
}
// Move the greatest of n behind the others.
static uint64_t take_greatest(uint64_t *heap, int32_t n) {
  const uint64_t greatest = heap[0];
  heap_sink(heap, (size_t)n - 1, 0, heap[n - 1]);
  heap[n - 1] = greatest;
  return greatest;
}

// Put the tokens with p >= bound into `order`; their number, and the sum of their p.
static int32_t gather(state *s, const token_logits *of, float bound, double *sum) {
  int32_t n = 0;
  *sum = 0;
  for (int32_t i = 0; i < of->n; i++)
    if (s->choosing.scores[i] >= bound) {
      s->choosing.order[n++] = candidate(s->choosing.scores[i], of->ids ? of->ids[i] : i);
      *sum += s->choosing.scores[i];
    }
  return n;
}

// The tokens that top-k, then top-p leave, as a part of `order`. Only those above a bound are looked at more
// closely; the bound sinks until they are enough.
static uint64_t *shortlist(state *s, const token_logits *of, int32_t top_k, float top_p, int32_t *kept) {
  const float bounds[] = {0x1p-8f, 0x1p-16f, 0};
  double enough = __builtin_inf(), sum, covered = 0;
  int32_t n = 0, rest;
  if (!top_k) {
    gather(s, of, 0, &sum);
    enough = top_p * sum;
  }
  for (int b = 0; b < 3; b++) {
    n = gather(s, of, bounds[b], &sum);
    if (top_k ? n >= top_k : sum >= enough)
      break;
  }
  make_heap(s->choosing.order, n);
  for (rest = n; rest > 0 && (!top_k || n - rest < top_k) && covered < enough; rest--)
    covered += p_of(take_greatest(s->choosing.order, rest));
  if (top_k) { // top-p of those: again from the greatest down
    enough = top_p * covered;
    covered = 0;
    for (rest = n; covered < enough; rest--)
      covered += p_of(s->choosing.order[rest - 1]);
  }
  *kept = n - rest;
  return s->choosing.order + rest;
}

// The candidate in which the draw u falls, of those with p >= min_p.
static int32_t draw(const uint64_t *list, int32_t n, float min_p, double u) {
  double total = 0, sum = 0;
  int32_t last = 0;
  for (int32_t i = 0; i < n; i++)
    if (p_of(list[i]) >= min_p)
      total += p_of(list[i]);
  for (int32_t i = 0; i < n && sum <= u * total; i++)
    if (p_of(list[i]) >= min_p) {
      sum += p_of(list[i]);
      last = id_of(list[i]);
    }
  return last;
}

static int finite(float a) { return a - a == 0; }

int sampling_is_sane(const bg_sampling *s) {
  return s->temperature >= 0 && finite(s->temperature) && s->top_k >= 0 && s->top_p > 0 && s->top_p <= 1 &&
         s->min_p >= 0 && s->min_p <= 1 && s->repeat_penalty > 0 && finite(s->repeat_penalty) &&
         s->repeat_last >= 0;
}

// scores = logits, but those of recent tokens are moved down, once each
static int32_t penalise(state *s, const bg_sampling *sampling, const token_logits *of, const int32_t *history,
                        int32_t n) {
  memcpy(s->choosing.scores, of->logits, (size_t)of->n * sizeof *of->logits);
  for (int32_t i = n > sampling->repeat_last ? n - sampling->repeat_last : 0; i < n; i++) {
    const int32_t id = history[i];
    if (id < 0 || id >= s->model->config.vocab)
      return BG_E_TOKEN;
    int32_t at = id;
    if (!of->ids || SEARCH(at, 0, of->n, (int64_t)of->ids[at] - id))
      s->choosing.scores[at] = of->logits[at] > 0 ? of->logits[at] / sampling->repeat_penalty
                                                  : of->logits[at] * sampling->repeat_penalty;
  }
  return BG_OK;
}

// Temperature, top-k, top-p, min-p, draw.
static int32_t choose(state *s, const bg_sampling *sampling, const token_logits *of, float top, double u) {
  const float possible = 1e-38f; // what exp_row gives is greater, or 0
  const float least = sampling->min_p > possible ? sampling->min_p : possible;
  uint64_t *list = s->choosing.order;
  int32_t n;
  double sum;
  s->ops->exp_row(s->choosing.scores, of->n, top, sampling->temperature, s->choosing.scores);
  if (sampling->top_k || sampling->top_p < 1)
    list = shortlist(s, of, sampling->top_k, sampling->top_p, &n);
  else
    n = gather(s, of, least, &sum);
  return draw(list, n, least, u);
}

// Where the greatest score is first.
static int32_t first_of(const float *scores, float greatest) {
  int32_t at = 0;
  while (scores[at] != greatest)
    at++;
  return at;
}

int32_t sample(state *s, const bg_sampling *sampling, const token_logits *of, const int32_t *history,
               int32_t n, uint64_t step) {
  const int32_t code = penalise(s, sampling, of, history, n);
  if (code != BG_OK)
    return code;
  const float greatest = s->ops->greatest(s->choosing.scores, of->n);
  if (!finite(greatest))
    return BG_E_VALUE;
  if (sampling->temperature > 0)
    return choose(s, sampling, of, greatest, uniform(sampling->seed, step));
  const int32_t at = first_of(s->choosing.scores, greatest);
  return of->ids ? of->ids[at] : at;
}
