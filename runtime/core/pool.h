// pool.h: a few threads that wait for short tasks.
#ifndef BITGEN_POOL_H
#define BITGEN_POOL_H

#include <stdint.h>

typedef struct pool pool;
typedef void pool_task(void *arg, int32_t thread, int32_t threads);

enum { MAX_THREADS = 1024 };

// Start threads - 1 workers (the caller is thread 0): BG_OK, BG_E_ARGUMENT, BG_E_MEMORY or BG_E_THREAD.
int32_t pool_open(int32_t threads, pool **out);
void pool_close(pool *p); // NULL is nothing to close

// Every thread runs task(arg, thread, threads); returns when all are done. Not for two callers at once.
void pool_run(pool *p, pool_task *task, void *arg);
int32_t pool_threads(const pool *p);

// Where the range of `thread` begins when threads divide n items; that of `threads` is n.
static inline int32_t range_begin(int32_t n, int32_t thread, int32_t threads) {
  return (int32_t)((int64_t)n * thread / threads);
}

#endif
