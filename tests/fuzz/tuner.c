// tuner.c: any requests to programs/tuner.c, as they come over a connection. It opens no files, and what takes long
// when it is asked to is cut short after its arguments were used to the full.
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include "bitgen.h"

enum { FEW = 2 };
static FILE *nowhere;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  nowhere = fopen("/dev/null", "wb");
  return !nowhere;
}

static FILE *no_file(const char *path, const char *mode) {
  (void)path, (void)mode;
  return NULL;
}

static int32_t few(int32_t n) { return n < FEW ? n : FEW; }

static void touch(const void *from, int64_t bytes) {
  const volatile uint8_t *at = from;
  (void)at[0], (void)at[bytes - 1];
}

static int32_t run_few(int32_t isa, int32_t index, const uint8_t *w, const int8_t *q, int32_t n, int32_t *y,
                       int32_t threads) {
  return bg_kernel_run(isa, index, w, q, n, y, few(threads));
}

static int32_t time_few(int32_t isa, int32_t index, const uint8_t *w, int32_t copies, const int8_t *q,
                        int32_t n, int32_t threads, int32_t reps, double *seconds) {
  bg_kernel_info k;
  if (bg_kernel_get(isa, index, &k) != BG_OK || n > k.max_n)
    return BG_E_ARGUMENT;
  touch(w, copies * k.weight_bytes);
  touch(q, n * k.row_bytes);
  for (int32_t i = 0; i < reps; i++)
    seconds[i] = 0;
  return bg_kernel_time(isa, index, w, few(copies), q, n < 64 ? n : 64, few(threads), few(reps), seconds);
}

static int32_t read_few(int32_t isa, const void *buffer, size_t bytes, int32_t threads, int32_t reps,
                        double *rate) {
  return bg_read_bandwidth(isa, buffer, bytes, few(threads), few(reps), rate);
}

static int32_t no_peak(int32_t isa, int32_t threads, int32_t reps, double *rate) {
  (void)isa, (void)threads, (void)reps;
  *rate = 1;
  return BG_OK;
}

#define main tuner_main
#define alarm(seconds) ((void)(seconds))
#define fopen no_file
#define bg_kernel_run run_few
#define bg_kernel_time time_few
#define bg_read_bandwidth read_few
#define bg_peak_ops no_peak
#include "tuner.c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  FILE *in = size ? fmemopen((void *)data, size, "rb") : NULL, *const input = stdin, *const output = stdout;
  if (!in)
    return 0;
  stdin = in;
  stdout = nowhere;
  tuner_main();
  stdin = input;
  stdout = output;
  fclose(in);
  allocate(&weights, 0);
  allocate(&activations, 0);
  allocate(&stream, 0);
  return 0;
}
