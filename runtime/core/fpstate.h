// fpstate.h: arithmetic as IEEE has it by default. The host program may have changed a thread's rounding, or
// made it take denormals for zero; results must not depend on that.
#ifndef BITGEN_FPSTATE_H
#define BITGEN_FPSTATE_H

#include <stdint.h>

#if defined(__x86_64__)
static inline uint64_t fp_get(void) { return __builtin_ia32_stmxcsr(); }
static inline void fp_set(uint64_t state) { __builtin_ia32_ldmxcsr((unsigned)state); }
enum { FP_DEFAULT = 0x1f80 }; // every exception masked
#elif defined(__aarch64__)
static inline uint64_t fp_get(void) {
  uint64_t state;
  __asm__ volatile("mrs %0, fpcr" : "=r"(state));
  return state;
}
static inline void fp_set(uint64_t state) { __asm__ volatile("msr fpcr, %0" ::"r"(state)); }
enum { FP_DEFAULT = 0 };
#elif defined(__riscv)
static inline uint64_t fp_get(void) {
  uint64_t state;
  __asm__ volatile("frcsr %0" : "=r"(state));
  return state;
}
static inline void fp_set(uint64_t state) { __asm__ volatile("fscsr %0" ::"r"(state)); }
enum { FP_DEFAULT = 0 };
#else
#error "say how this architecture's floating-point state is read and set"
#endif

// Take the default; what was, for fp_set to bring back.
static inline uint64_t fp_default(void) {
  const uint64_t was = fp_get();
  fp_set(FP_DEFAULT);
  return was;
}

#endif
