// attention_tasks.c: which thread attends to what. The arithmetic of a block is attention*.c's.
//
// The queries of a run that read one kv head are rows: row r is head kv_head * group + r % group of the run's
// token r / group. Threads take units of work: up to ATTEND_ROWS rows of a kv head over all positions, which
// merge blocks as they come; or, of a run of few tokens, all rows of a kv head over one block, so that a long
// context keeps many threads busy. Either way the blocks of a row are merged in order.

#include "core/attention_tasks.h"

enum { ATTEND_ALONE = 1 << 16 }; // multiply-adds of attention that are not worth waking a thread for

static int32_t group(const state *s) { return s->model->config.heads / s->model->config.kv_heads; }
static int32_t blocks(const run *r) { return (r->session->position + r->n - 1) / ATTEND_BLOCK + 1; }
static int32_t row_groups(const run *r) {
  return (r->n * group(r->session->state) + ATTEND_ROWS - 1) / ATTEND_ROWS;
}
static int32_t is_spread(const run *r) { return r->n <= SPREAD && blocks(r) >= row_groups(r); }

void plan_attention(state *s) {
  int32_t units = 0;
  for (int32_t i = 0; i < s->chunk.n_runs; i++) {
    run *r = &s->chunk.runs[i];
    units += s->model->config.kv_heads * (is_spread(r) ? blocks(r) : row_groups(r));
    r->units_end = units;
  }
}

static int32_t head_of(const state *s, int32_t kv_head, int32_t row) {
  return kv_head * group(s) + row % group(s);
}

static float *query_row(const state *s, const run *r, int32_t kv_head, int32_t row) {
  return query_of(s, r->row0 + row / group(s)) + (size_t)head_of(s, kv_head, row) * s->model->config.head_dim;
}

// The partial result of a head of a run's token over one block; the run is spread.
static float *partial(const state *s, const run *r, int32_t token, int32_t head, int32_t block) {
  return r->session->partials +
         (((size_t)token * s->model->config.heads + head) * r->session->attend_blocks + block) *
             partial_floats(s->model->config.head_dim);
}

// The first position that a run's row sees: all of them, or as many as the layer's window holds.
static int32_t first_seen(const state *s, const run *r, int32_t row) {
  const int32_t first = r->session->position + row / group(s) + 1 - s->chunk.window;
  return first > 0 ? first : 0;
}

// Rows [row0, row0 + rows) without those for which the block is fully masked: the tokens of the first rows
// lie before it, the windows of the last begin after it (they see neither this block nor an earlier one).
typedef struct {
  int32_t begin, end;
} row_range;

static row_range unmasked(const state *s, const run *r, int32_t row0, int32_t rows, int32_t block) {
  row_range of = {row0, row0 + rows};
  while (of.begin < of.end && r->session->position + of.begin / group(s) < block * ATTEND_BLOCK)
    of.begin++;
  while (of.end > of.begin && first_seen(s, r, of.end - 1) >= (block + 1) * ATTEND_BLOCK)
    of.end--;
  return of;
}

// parts[i] = the partial result of row row0 + i over a block that is partly masked for it or not at all.
static void attend_block(const state *s, const run *r, int32_t kv_head, int32_t row0, int32_t rows,
                         int32_t block, int32_t ahead, float *const *parts) {
  const int32_t d = s->model->config.head_dim, first = block * ATTEND_BLOCK;
  const float *q[ATTEND_ROWS];
  int32_t begins[ATTEND_ROWS], ends[ATTEND_ROWS];
  for (int32_t i = 0; i < rows; i++) {
    const int32_t sees = r->session->position + (row0 + i) / group(s) + 1 - first;
    const int32_t from = first_seen(s, r, row0 + i) - first;
    begins[i] = from > 0 ? from : 0;
    ends[i] = sees < ATTEND_BLOCK ? sees : ATTEND_BLOCK;
    q[i] = query_row(s, r, kv_head, row0 + i);
  }
  s->attention->block(q, begins, ends, rows, d, s->model->attention_scale, k_cache(r->session, kv_head),
                      v_cache(r->session, kv_head), first, ahead, parts);
}

static void attend_rows(const state *s, const run *r, int32_t kv_head, int32_t row0, int32_t rows,
                        float *scratch) {
  const int32_t d = s->model->config.head_dim, last = r->session->position + (row0 + rows - 1) / group(s);
  float *sums[ATTEND_ROWS], *parts[ATTEND_ROWS];
  for (int32_t i = 0; i < rows; i++)
    sums[i] = scratch + 2 * i * partial_floats(d);
  for (int32_t block = first_seen(s, r, row0) / ATTEND_BLOCK; block <= last / ATTEND_BLOCK; block++) {
    const row_range of = unmasked(s, r, row0, rows, block);
    const int32_t begin = of.begin - row0, end = of.end - row0;
    for (int32_t i = begin; i < end; i++) // a row's first block goes to its sum, the others beside it
      parts[i] = sums[i] + (block > first_seen(s, r, row0 + i) / ATTEND_BLOCK ? partial_floats(d) : 0);
    attend_block(s, r, kv_head, of.begin, end - begin, block, 1, parts + begin);
    for (int32_t i = begin; i < end; i++)
      if (parts[i] != sums[i])
        s->attention->merge(sums[i], parts[i], d);
  }
  for (int32_t i = 0; i < rows; i++)
    s->attention->finish(sums[i], d, query_row(s, r, kv_head, row0 + i));
}

static void attend_spread(const state *s, const run *r, int32_t kv_head, int32_t block) {
  const row_range of = unmasked(s, r, 0, r->n * group(s), block);
  for (int32_t row0 = of.begin; row0 < of.end; row0 += ATTEND_ROWS) {
    const int32_t rows = of.end - row0 < ATTEND_ROWS ? of.end - row0 : ATTEND_ROWS;
    float *parts[ATTEND_ROWS];
    for (int32_t i = 0; i < rows; i++)
      parts[i] = partial(s, r, (row0 + i) / group(s), head_of(s, kv_head, row0 + i), block);
    attend_block(s, r, kv_head, row0, rows, block, pool_threads(s->pool), parts);
  }
}

static void attend_unit(const state *s, const run *r, int32_t unit, float *scratch) {
  if (is_spread(r)) { // a head's blocks follow each other, so that a thread comes back to it
    attend_spread(s, r, unit / blocks(r), unit % blocks(r));
    return;
  }
  const int32_t kv_heads = s->model->config.kv_heads, kv_head = unit % kv_heads;
  // Later rows see more positions: they come first, so that threads end together.
  const int32_t row0 = (row_groups(r) - 1 - unit / kv_heads) * ATTEND_ROWS, rest = r->n * group(s) - row0;
  attend_rows(s, r, kv_head, row0, rest < ATTEND_ROWS ? rest : ATTEND_ROWS, scratch);
}

static void attend_task(void *arg, int32_t thread, int32_t threads) {
  (void)threads;
  state *s = arg;
  const run *r = s->chunk.runs;
  const int32_t end = r[s->chunk.n_runs - 1].units_end;
  float *scratch =
      s->attend_scratch + (size_t)thread * 2 * ATTEND_ROWS * partial_floats(s->model->config.head_dim);
  int32_t unit, begin = 0; // of this run
  while ((unit = atomic_fetch_add_explicit(&s->next_unit, 1, memory_order_relaxed)) < end) {
    for (; unit >= r->units_end; r++)
      begin = r->units_end;
    attend_unit(s, r, unit - begin, scratch);
  }
}

void attend(state *s) {
  const bg_header *c = &s->model->config;
  atomic_store_explicit(&s->next_unit, 0, memory_order_relaxed);
  if (s->chunk.n == 1 && (int64_t)(position_of(s, 0) + 1) * c->heads * c->head_dim * 2 < ATTEND_ALONE)
    attend_task(s, 0, 1);
  else
    pool_run(s->pool, attend_task, s);
}

void merge_blocks(state *s, int32_t t) {
  const run *r = run_of(s, t);
  const int32_t d = s->model->config.head_dim, token = t - r->row0;
  if (!is_spread(r))
    return;
  const int32_t first = first_seen(s, r, token * group(s)) / ATTEND_BLOCK;
  for (int32_t head = 0; head < s->model->config.heads; head++) {
    float *sum = partial(s, r, token, head, first);
    for (int32_t block = first + 1; block <= position_of(s, t) / ATTEND_BLOCK; block++)
      s->attention->merge(sum, partial(s, r, token, head, block), d);
    s->attention->finish(sum, d, query_of(s, t) + (size_t)head * d);
  }
}
