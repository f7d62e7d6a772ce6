// kernels.c: kernels one by one, for tests, tuning and benchmarks; and how fast this machine can read.
#include <stdlib.h>
#include <time.h>

#include "bitgen.h"
#include "core/isa.h"
#include "core/pool.h"
#include "core/product.h"
#include "os/os.h"
#include "simd/ops.h"

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
                          (int64_t)k->operand_bytes,
                          (int64_t)bg_row_bytes(k)};
  return BG_OK;
}

// One product and all that it works on: first tokens are prepared, then the kernel runs.
typedef struct {
  product product;
  const int8_t *q; // [n] rows of bg_row_bytes
  uint8_t *operand;
  pool *pool;
} bench;

static void prepare(void *arg, int32_t thread, int32_t threads) {
  bench *b = arg;
  const bg_kernel *k = b->product.kernel;
  int32_t t0 = range_begin(b->product.n, thread, threads),
          t1 = range_begin(b->product.n, thread + 1, threads);
  if (t0 < t1)
    k->pack_activations(b->q + (size_t)t0 * bg_row_bytes(k), t1 - t0, b->operand + t0 * k->operand_bytes);
}

static void multiply(bench *b) {
  if (b->product.n == 1)
    prepare(b, 0, 1);
  else
    pool_run(b->pool, prepare, b);
  pool_run(b->pool, product_task, &b->product);
}

static void bench_close(bench *b) {
  pool_close(b->pool);
  os_free(b->operand);
  os_free(b->product.scratch);
}

static int32_t bench_open(int32_t isa, int32_t index, const uint8_t *w, const int8_t *q, int32_t n,
                          int32_t threads, bench *b) {
  const bg_isa *level;
  const bg_kernel *k = kernel_at(isa, index);
  *b = (bench){.q = q};
  if (!k || !w || !q || n < 1 || n > k->max_n)
    return BG_E_ARGUMENT;
  if (isa_find(isa, &level) != BG_OK)
    return BG_E_ISA;
  if (k->operand_bytes > SIZE_MAX / 2 / (size_t)n)
    return BG_E_MEMORY;
  int32_t code = pool_open(threads, &b->pool);
  if (code != BG_OK)
    return code;
  b->operand = os_alloc((size_t)n * k->operand_bytes);
  b->product = (product){k, w, b->operand, n, NULL, os_alloc(threads * (k->scratch_bytes + 64))};
  if (b->operand && b->product.scratch)
    return BG_OK;
  bench_close(b);
  return BG_E_MEMORY;
}

int32_t bg_kernel_run(int32_t isa, int32_t index, const uint8_t *w, const int8_t *q, int32_t n, int32_t *y,
                      int32_t threads) {
  bench b;
  if (!y)
    return BG_E_ARGUMENT;
  int32_t code = bench_open(isa, index, w, q, n, threads, &b);
  if (code != BG_OK)
    return code;
  b.product.y = y;
  multiply(&b);
  bench_close(&b);
  return BG_OK;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int32_t bg_kernel_time(int32_t isa, int32_t index, const uint8_t *w, int32_t copies, const int8_t *q,
                       int32_t n, int32_t threads, int32_t reps, double *seconds) {
  bench b;
  if (copies < 1 || reps < 0 || !seconds)
    return BG_E_ARGUMENT;
  int32_t code = bench_open(isa, index, w, q, n, threads, &b);
  if (code != BG_OK)
    return code;
  int32_t *y = b.product.y = calloc((size_t)n * (size_t)b.product.kernel->m_pad, sizeof *y);
  if (y) {
    multiply(&b); // threads started, buffers touched
    for (int32_t i = 0; i < reps; i++) {
      b.product.w = w + (size_t)(i % copies) * b.product.kernel->weight_bytes;
      double start = now();
      multiply(&b);
      seconds[i] = now() - start;
    }
  }
  code = y ? BG_OK : BG_E_MEMORY;
  free(y);
  bench_close(&b);
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

static void read_task(void *arg, int32_t thread, int32_t threads) {
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
  return best_rate(isa, threads, reps, read_task, &(effort){.buffer = buffer, .bytes = bytes}, bytes_per_s);
}

static void multiply_task(void *arg, int32_t thread, int32_t threads) {
  effort *e = arg;
  (void)thread, (void)threads;
  e->done += e->level->peak(1 << 20);
}

int32_t bg_peak_ops(int32_t isa, int32_t threads, int32_t reps, double *ops_per_s) {
  return best_rate(isa, threads, reps, multiply_task, &(effort){0}, ops_per_s);
}
