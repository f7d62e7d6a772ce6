// isa.c: the ISA levels of a library. A level counts as present when its probe executed here: some virtual
// machines advertise instructions that trap.
#include "core/isa.h"

#include <stdatomic.h>
#include <stddef.h>

#include "bitgen.h"
#include "os/os.h"

enum { MAX_LEVELS = 32, UNKNOWN = 0, RUNS, TRAPS };

static atomic_int verdicts[MAX_LEVELS]; // the only mutable state of the library: what the probes said

int32_t bg_isa_count(void) {
  int32_t n = 0;
  while (n < MAX_LEVELS && bg_isas[n])
    n++;
  return n;
}

static const bg_isa *at(int32_t isa) { return isa >= 0 && isa < bg_isa_count() ? bg_isas[isa] : NULL; }

const char *bg_isa_name(int32_t isa) { return at(isa) ? at(isa)->name : ""; }

const char *bg_isa_layout(int32_t isa) { return at(isa) ? at(isa)->layout : ""; }

int32_t bg_isa_runs(int32_t isa) {
  if (!at(isa))
    return 0;
  if (atomic_load(&verdicts[isa]) == UNKNOWN)
    atomic_store(&verdicts[isa], os_runs(at(isa)->name, at(isa)->probe) ? RUNS : TRAPS);
  return atomic_load(&verdicts[isa]) == RUNS;
}

int32_t bg_isa_best(void) {
  for (int32_t isa = 0; isa < bg_isa_count(); isa++)
    if (bg_isa_runs(isa))
      return isa;
  return BG_E_ISA;
}

int32_t isa_find(int32_t isa, const bg_isa **out) {
  if (isa == -1)
    isa = bg_isa_best();
  *out = at(isa);
  return *out && bg_isa_runs(isa) ? BG_OK : BG_E_ISA;
}

const char *bg_strerror(int32_t code) {
  switch (code) {
  case BG_OK:
    return "no error";
  case BG_E_ARGUMENT:
    return "an argument is null or out of range; see bitgen.h for what the call takes";
  case BG_E_MEMORY:
    return "not enough memory; choose a shorter context or a smaller model";
  case BG_E_IO:
    return "the file cannot be opened or read; check the path and its permissions";
  case BG_E_FORMAT:
    return "not a packed model, or damaged; delete it and it is packed again";
  case BG_E_LAYOUT:
    return "packed for other kernels than this library holds; pack the model again for this library";
  case BG_E_NO_KERNEL:
    return "the library lacks a kernel for a matrix of this model; build a library for this model";
  case BG_E_ISA:
    return "no such ISA level in this library, or this CPU cannot execute it; choose another level";
  case BG_E_CONTEXT:
    return "the tokens do not fit into the context; rewind, or open a session with a longer one";
  case BG_E_TOKEN:
    return "a token id lies outside the vocabulary; use the tokenizer of this model";
  case BG_E_VALUE:
    return "NaN or infinity where numbers must be finite; the model file is damaged, fetch it again";
  case BG_E_THREAD:
    return "a thread cannot be started; use fewer threads";
  case BG_E_STATE:
    return "the state of this model's sequence is not that of the position; rewind to 0 and append the "
           "tokens again";
  default:
    return "unknown error code";
  }
}
