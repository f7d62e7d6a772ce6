// isa.h: which ISA levels the library holds and this CPU executes.
#ifndef BITGEN_ISA_H
#define BITGEN_ISA_H

#include "kernel.h"

// The level of this number, -1 for the best that runs. BG_E_ISA when there is none or it does not run.
int32_t isa_find(int32_t isa, const bg_isa **out);

#endif
