// kernels.c: kernels one by one, for tests, tuning and benchmarks; and how fast this machine can read.
#include <stdlib.h>
#include <time.h>

#include "bitgen.h"
#include "isa.h"
#include "ops.h"
#include "pool.h"

static const bg_kernel *kernel_at(int32_t isa, int32_t index) {
  if (isa == -1)
    isa = bg_isa_best();
  if (isa < 0 || isa >= bg_isa_count() || index < 0 || index >= bg_isas[isa]->n_kernels)
    return NULL;
  return bg_isas[isa]->kernels[index];
}

int32_t bg_kernel_count(int32_t isa) {
  if (isa == -1)
    isa = bg_isa_best();
  return isa >= 0 && isa < bg_isa_count() ? bg_isas[isa]->n_kernels : BG_E_ISA;
}

int32_t bg_kernel_get(int32_t isa, int32_t index, bg_kernel_info *out) {
  const bg_kernel *k = kernel_at(isa, index);
  if (!k || !out)
    return BG_E_ARGUMENT;
  *out = (bg_kernel_info){k->symbol,
                          k->m,
                          k->k,
                          k->m_pad,
                          k->panels,
                          k->max_n,
                          (int64_t)k->weight_bytes,
                          (int64_t)k->operand_bytes};
  return BG_OK;
}

// One product, as the threads share it: first tokens are prepared, then panels are computed.
typedef struct {
  const bg_kernel *kernel;
  const uint8_t *w;
  const int8_t *q; // [n][k]
  int32_t n;
  uint8_t *operand; // [n][operand_bytes]
  int32_t *y;       // [n][m_pad]
  pool *pool;
} product;

static void prepare(void *arg, int32_t thread, int32_t threads) {
  product *p = arg;
  int32_t t0 = share(p->n, thread, threads), t1 = share(p->n, thread + 1, threads);
  if (t0 == t1)
    return;
  p->kernel->prepare(p->q + (size_t)t0 * p->kernel->k, t1 - t0, p->operand + t0 * p->kernel->operand_bytes);
}

static void run(void *arg, int32_t thread, int32_t threads) {
  product *p = arg;
  int32_t p0 = share(p->kernel->panels, thread, threads), p1 = share(p->kernel->panels, thread + 1, threads);
  if (p0 < p1)
    p->kernel->run(p->w, p->operand, p->n, p->y, p0, p1);
}

static void multiply(product *p) {
  if (p->n == 1)
    prepare(p, 0, 1);
  else
    pool_run(p->pool, prepare, p);
  pool_run(p->pool, run, p);
}

static int32_t product_open(int32_t isa, int32_t index, const uint8_t *w, const int8_t *q, int32_t n,
                            int32_t threads, product *p) {
  const bg_isa *level;
  *p = (product){.kernel = kernel_at(isa, index), .w = w, .q = q, .n = n};
  if (!p->kernel || !w || !q || n < 1 || n > p->kernel->max_n)
    return BG_E_ARGUMENT;
  if (isa_find(isa, &level) != BG_OK)
    return BG_E_ISA;
  if (p->kernel->operand_bytes > SIZE_MAX / 2 / (size_t)n)
    return BG_E_MEMORY;
  p->operand = aligned_alloc(64, (size_t)n * p->kernel->operand_bytes);
  if (!p->operand)
    return BG_E_MEMORY;
  int32_t code = pool_open(threads, &p->pool);
  if (code != BG_OK)
    free(p->operand);
  return code;
}

static void product_close(product *p) {
  pool_close(p->pool);
  free(p->operand);
}

int32_t bg_kernel_run(int32_t isa, int32_t index, const uint8_t *w, const int8_t *q, int32_t n, int32_t *y,
                      int32_t threads) {
  product p;
  if (!y)
    return BG_E_ARGUMENT;
  int32_t code = product_open(isa, index, w, q, n, threads, &p);
  if (code != BG_OK)
    return code;
  p.y = y;
  multiply(&p);
  product_close(&p);
  return BG_OK;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int32_t bg_kernel_time(int32_t isa, int32_t index, const uint8_t *w, int32_t copies, const int8_t *q,
                       int32_t n, int32_t threads, int32_t reps, double *seconds) {
  product p;
  if (copies < 1 || reps < 0 || !seconds)
    return BG_E_ARGUMENT;
  int32_t code = product_open(isa, index, w, q, n, threads, &p);
  if (code != BG_OK)
    return code;
  p.y = calloc((size_t)n * (size_t)p.kernel->m_pad, sizeof *p.y);
  if (p.y) {
    multiply(&p); // threads started, buffers touched
    for (int32_t i = 0; i < reps; i++) {
      p.w = w + (size_t)(i % copies) * p.kernel->weight_bytes;
      double start = now();
      multiply(&p);
      seconds[i] = now() - start;
    }
  }
  code = p.y ? BG_OK : BG_E_MEMORY;
  free(p.y);
  product_close(&p);
  return code;
}

// What the machine can do: threads add up the work they did, and the best pass counts.
typedef struct {
  const bg_isa *level;
  const uint8_t *buffer;
  size_t bytes;
  _Atomic int64_t done;  // bytes or operations
  _Atomic uint64_t seen; // what was read, so that the reading cannot be left out
} effort;

static int32_t best_rate(int32_t isa, int32_t threads, int32_t reps, pool_task *task, effort *e,
                         double *rate) {
  pool *pool;
  if (reps < 1 || !rate)
    return BG_E_ARGUMENT;
  int32_t code = isa_find(isa, &e->level);
  if (code == BG_OK)
    code = pool_open(threads, &pool);
  if (code != BG_OK)
    return code;
  *rate = 0;
  for (int32_t i = 0; i < reps; i++) {
    e->done = 0;
    double start = now();
    pool_run(pool, task, e);
    double seconds = now() - start;
    if ((double)e->done > *rate * seconds)
      *rate = (double)e->done / seconds;
  }
  pool_close(pool);
  return BG_OK;
}

static void read_share(void *arg, int32_t thread, int32_t threads) {
  effort *e = arg;
  const int64_t units = (int64_t)(e->bytes / READ_UNIT);
  const int64_t first = units * thread / threads, last = units * (thread + 1) / threads;
  e->seen += e->level->ops->read(e->buffer + first * READ_UNIT, (size_t)(last - first) * READ_UNIT);
  e->done += (last - first) * READ_UNIT;
}

int32_t bg_read_bandwidth(int32_t isa, const void *buffer, size_t bytes, int32_t threads, int32_t reps,
                          double *bytes_per_s) {
  if (!buffer || bytes < READ_UNIT)
    return BG_E_ARGUMENT;
  return best_rate(isa, threads, reps, read_share, &(effort){.buffer = buffer, .bytes = bytes}, bytes_per_s);
}

static void multiply_share(void *arg, int32_t thread, int32_t threads) {
  effort *e = arg;
  (void)thread, (void)threads;
  e->done += e->level->peak(1 << 20);
}

int32_t bg_peak_ops(int32_t isa, int32_t threads, int32_t reps, double *ops_per_s) {
  return best_rate(isa, threads, reps, multiply_share, &(effort){0}, ops_per_s);
}
