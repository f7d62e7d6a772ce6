// division_lab.c: whatever threads divide, each part is done once and by one of them. Prints what is not.
//
// product_task is tried with a kernel that counts what it is asked for; attend with operations whose partial result
// is how many positions were seen, their sum and the sum of their squares.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/attention_tasks.h"
#include "core/product.h"

static int wrong;

static void expect(int holds, const char *what, const int32_t *numbers, int n) {
  if (holds)
    return;
  wrong++;
  printf("%s:", what);
  for (int i = 0; i < n; i++)
    printf(" %d", numbers[i]);
  printf("\n");
}
#define EXPECT(holds, what, ...)                                                                             \
  expect(holds, what, (const int32_t[]){__VA_ARGS__}, sizeof(int32_t[]){__VA_ARGS__} / sizeof(int32_t))

// ---- ranges -----------------------------------------------------------------------------------------------

static void check_ranges(void) {
  static const int32_t counts[] = {0, 1, 2, 3, 5, 7, 8, 31, 64, 100, 1023, 1024, 1025, 128256, INT32_MAX};
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
    for (int32_t threads = 1; threads <= MAX_THREADS; threads++) {
      const int32_t n = counts[i];
      int fair = range_begin(n, 0, threads) == 0 && range_begin(n, threads, threads) == n;
      for (int32_t t = 0; t < threads; t++) {
        const int32_t share = range_begin(n, t + 1, threads) - range_begin(n, t, threads);
        fair &= share == n / threads || share == n / threads + (n % threads != 0);
      }
      EXPECT(fair, "range", n, threads);
    }
}

// ---- products ---------------------------------------------------------------------------------------------

enum { MOST_TOKENS = 300, MOST_PANELS = 40, MOST_WORKERS = 40 };
static uint8_t times[MOST_TOKENS][MOST_PANELS], busy[MOST_WORKERS];
static uint8_t operands[MOST_TOKENS];
static int32_t rows[1];

static void count(const uint8_t *w, const uint8_t *operand, int32_t n, int32_t *y, int32_t p0, int32_t p1,
                  void *scratch) {
  (void)w, (void)y;
  ++*(uint8_t *)scratch;
  for (int32_t t = 0; t < n; t++)
    for (int32_t p = p0; p < p1; p++)
      times[operand - operands + t][p]++;
}

static void check_product(int32_t n, int32_t panels, int32_t m_tile, int32_t n_tile) {
  const bg_kernel k = {.panels = panels,
                       .m_pad = 8 * panels,
                       .operand_bytes = 1,
                       .m_tile = m_tile,
                       .n_tile = n_tile,
                       .scratch_bytes = 1,
                       .run = count};
  for (int32_t threads = 1; threads <= MOST_WORKERS; threads++) {
    product p = {&k, NULL, operands, n, rows, busy};
    int once = 1;
    memset(times, 0, sizeof times);
    memset(busy, 0, sizeof busy);
    for (int32_t t = 0; t < threads; t++)
      product_task(&p, t, threads);
    for (int32_t t = 0; t < MOST_TOKENS; t++)
      for (int32_t panel = 0; panel < MOST_PANELS; panel++)
        once &= times[t][panel] == (t < n && panel < panels);
    for (int32_t t = 0; t < MOST_WORKERS; t++)
      once &= busy[t] <= 1;
    EXPECT(once, "product", n, panels, m_tile, n_tile, threads);
  }
}

static void check_products(void) {
  static const int32_t tokens[] = {1, 2, 15, 16, 17, 33, 48, 64, 100, MOST_TOKENS},
                       panels[] = {1, 2, 3, 7, 16, MOST_PANELS}, m_tiles[] = {0, 8, 64, 1280},
                       n_tiles[] = {0, 16, 32};
  for (int t = 0; t < 10; t++)
    for (int p = 0; p < 6; p++)
      for (int m = 0; m < 4; m++)
        for (int n = 0; n < 3; n++)
          check_product(tokens[t], panels[p], m_tiles[m], n_tiles[n]);
}

// ---- attention --------------------------------------------------------------------------------------------

enum { D = 16, LONGEST = 1100, MOST_HEADS = 20 };
static uint8_t caches[MOST_HEADS]; // a byte is a kv head's
static const state *at_hand;

static void see(const float *const *q, const int32_t *begins, const int32_t *ends, int32_t rows, int32_t d,
                float scale, const void *kc, const void *vc, int32_t first, int32_t ahead,
                float *const *part) {
  (void)d, (void)scale, (void)vc, (void)ahead;
  const bg_header *c = &at_hand->model->config;
  for (int32_t r = 0; r < rows; r++) {
    const int32_t head = (int32_t)((q[r] - at_hand->query) / D % c->heads);
    EXPECT((const uint8_t *)kc - caches == head / (c->heads / c->kv_heads), "head", head);
    memset(part[r], 0, 3 * sizeof **part);
    for (int32_t at = first + begins[r]; at < first + ends[r]; at++) {
      part[r][0] += 1;
      part[r][1] += (float)at;
      part[r][2] += (float)(at % 61 * (at % 61));
    }
  }
}

static void add(float *into, const float *part, int32_t d) {
  (void)d;
  for (int i = 0; i < 3; i++)
    into[i] += part[i];
}

static void finish(const float *part, int32_t d, float *y) {
  (void)d;
  for (int i = 0; i < 3; i++)
    y[i] += part[i]; // a row that is finished twice has twice as much
}

static float *garbage(size_t n) {
  float *made = malloc(n * sizeof *made);
  for (size_t i = 0; made && i < n; i++)
    made[i] = 1e9f;
  return made;
}

// Runs of tokens at these positions, of sessions that share; all rows see all positions that they should, once.
typedef struct {
  int32_t n, position;
} stretch;

static void check_attention(const stretch *stretches, int32_t n, int32_t kv_heads, int32_t group,
                            int32_t window, pool *workers) {
  static const bg_attention_ops ops = {.width = 4, .block = see, .merge = add, .finish = finish};
  const size_t partial = partial_floats(D);
  bg_model model = {.config = {.heads = kv_heads * group, .kv_heads = kv_heads, .head_dim = D, .layers = 1},
                    .layers = &(bg_layer){.kind = LAYER_FUSED}};
  state *s = calloc(1, sizeof *s);
  *s = (state){.model = &model, .attention = &ops, .pool = workers, .query_row = kv_heads * group * D};
  s->chunk.window = window;
  at_hand = s;
  bg_session sessions[4];
  for (int32_t i = 0; i < n; i++) {
    const int32_t blocks = LONGEST / ATTEND_BLOCK + 1;
    sessions[i] = (bg_session){.state = s,
                               .position = stretches[i].position,
                               .attend_blocks = blocks,
                               .k_head = 1,
                               .k = caches,
                               .v = caches};
    sessions[i].partials = garbage((size_t)SPREAD * kv_heads * group * blocks * partial);
    s->chunk.runs[i] = (run){.session = &sessions[i], .row0 = s->chunk.n, .n = stretches[i].n};
    for (int32_t t = 0; t < stretches[i].n; t++)
      s->chunk.run_of[s->chunk.n++] = i;
  }
  s->chunk.n_runs = n;
  s->query = calloc((size_t)s->chunk.n * s->query_row, sizeof(float));
  s->attend_scratch = garbage((size_t)pool_threads(workers) * 2 * ATTEND_ROWS * partial);
  plan_attention(s);
  attend(s);
  for (int32_t t = 0; t < s->chunk.n; t++) {
    const int32_t last = position_of(s, t), seen = last + 1 < window ? last + 1 : window;
    float want[3] = {0};
    merge_blocks(s, t);
    for (int32_t at = last + 1 - seen; at <= last; at++)
      add(want, (const float[]){1, (float)at, (float)(at % 61 * (at % 61))}, D);
    for (int32_t head = 0; head < kv_heads * group; head++)
      EXPECT(memcmp(query_of(s, t) + head * D, want, sizeof want) == 0, "attention", t, head, kv_heads, group,
             window, last, pool_threads(workers));
  }
  for (int32_t i = 0; i < n; i++)
    free(sessions[i].partials);
  free(s->query);
  free(s->attend_scratch);
  free(s);
}

static void check_attentions(void) {
  static const stretch chunks[][4] = {{{1, 0}},
                                      {{1, 255}},
                                      {{1, 1000}},
                                      {{8, 250}},
                                      {{8, 1000}},
                                      {{9, 1000}},
                                      {{40, 0}},
                                      {{120, 700}},
                                      {{1, 600}, {1, 3}, {5, 511}, {30, 240}},
                                      {{2, 256}, {64, 0}, {1, 1024}, {8, 505}}};
  static const int32_t heads[][2] = {{1, 1}, {2, 2}, {1, 20}, {5, 4}, {3, 1}},
                       windows[] = {INT32_MAX, 1, 5, 300};
  for (int32_t threads = 1; threads <= 7; threads += 2) {
    pool *workers;
    if (pool_open(threads, &workers) != BG_OK)
      abort();
    for (int c = 0; c < 10; c++)
      for (int h = 0; h < 5; h++)
        for (int w = 0; w < 4; w++)
          check_attention(chunks[c], c < 8 ? 1 : 4, heads[h][0], heads[h][1], windows[w], workers);
    pool_close(workers);
  }
}

int main(void) {
  check_ranges();
  check_products();
  check_attentions();
  printf("%d wrong\n", wrong);
  return wrong != 0;
}
