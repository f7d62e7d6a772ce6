// pool.c: fork and join. After a task workers spin for some tens of microseconds, since in a forward pass the
// next one follows at once; then they sleep. Spinning yields: more threads than cores still make progress.
#include "core/pool.h"

#include <sched.h>
#include <stdatomic.h>

#include "bitgen.h"
#include "core/fpstate.h"
#include "os/os.h"

enum { SPINS = 2000, SPINS_PER_YIELD = 64, STACK_BYTES = 2 << 20 };

typedef struct {
  pool *pool;
  int32_t thread;
  pthread_t id;
} worker;

struct pool {
  pool_task *task;
  void *arg;
  int32_t threads;
  int32_t closing;
  _Alignas(64) atomic_uint round;  // grows by one with every task
  _Alignas(64) atomic_int working; // workers not yet done with this round
  atomic_int sleeping;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  worker workers[]; // [threads], the first unused
};

static void spin(int32_t count) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
  if (count % SPINS_PER_YIELD == SPINS_PER_YIELD - 1)
    sched_yield();
}

// Wait until the round differs from `seen`. The sleeper announces itself before it looks at the round for the
// last time, and the caller advances the round before it looks for sleepers: one of them sees the other.
static void await_round(pool *p, unsigned seen) {
  for (int32_t i = 0; i < SPINS; i++) {
    if (atomic_load_explicit(&p->round, memory_order_acquire) != seen)
      return;
    spin(i);
  }
  pthread_mutex_lock(&p->mutex);
  atomic_fetch_add(&p->sleeping, 1);
  while (atomic_load(&p->round) == seen)
    pthread_cond_wait(&p->wake, &p->mutex);
  atomic_fetch_sub(&p->sleeping, 1);
  pthread_mutex_unlock(&p->mutex);
}

static void *work(void *arg) {
  worker *w = arg;
  pool *p = w->pool;
  fp_default(); // a thread starts with its maker's state
  for (unsigned seen = 0;; seen++) {
    await_round(p, seen);
    if (p->closing)
      return NULL;
    p->task(p->arg, w->thread, p->threads);
    atomic_fetch_sub_explicit(&p->working, 1, memory_order_release);
  }
}

static void next_round(pool *p) {
  atomic_fetch_add(&p->round, 1);
  if (atomic_load(&p->sleeping) == 0)
    return;
  pthread_mutex_lock(&p->mutex);
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->mutex);
}

void pool_run(pool *p, pool_task *task, void *arg) {
  p->task = task;
  p->arg = arg;
  atomic_store_explicit(&p->working, p->threads - 1, memory_order_relaxed);
  if (p->threads > 1)
    next_round(p);
  task(arg, 0, p->threads);
  for (int32_t i = 0; atomic_load_explicit(&p->working, memory_order_acquire); i = (i + 1) % SPINS)
    spin(i);
}

int32_t pool_threads(const pool *p) { return p->threads; }

static int32_t start(pool *p, int32_t thread) {
  pthread_attr_t attr;
  p->workers[thread] = (worker){.pool = p, .thread = thread};
  if (pthread_attr_init(&attr))
    return BG_E_THREAD;
  pthread_attr_setstacksize(&attr, STACK_BYTES);
  const int failed = os_thread(&p->workers[thread].id, &attr, work, &p->workers[thread]);
  pthread_attr_destroy(&attr);
  return failed ? BG_E_THREAD : BG_OK;
}

int32_t pool_open(int32_t threads, pool **out) {
  *out = NULL;
  if (threads < 1 || threads > MAX_THREADS)
    return BG_E_ARGUMENT;
  pool *p = os_alloc(sizeof(pool) + (size_t)threads * sizeof(worker));
  if (!p)
    return BG_E_MEMORY;
  *p = (pool){.threads = threads};
  pthread_mutex_init(&p->mutex, NULL);
  pthread_cond_init(&p->wake, NULL);
  for (int32_t i = 1; i < threads; i++)
    if (start(p, i) != BG_OK) {
      p->threads = i; // those that did start are stopped
      pool_close(p);
      return BG_E_THREAD;
    }
  *out = p;
  return BG_OK;
}

void pool_close(pool *p) {
  if (!p)
    return;
  p->closing = 1;
  next_round(p);
  for (int32_t i = 1; i < p->threads; i++)
    pthread_join(p->workers[i].id, NULL);
  pthread_cond_destroy(&p->wake);
  pthread_mutex_destroy(&p->mutex);
  os_free(p);
}
