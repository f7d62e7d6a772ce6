// nfc.h: Unicode normalisation form C (UAX 15), by a vocabulary's tables.
#ifndef BITGEN_NFC_H
#define BITGEN_NFC_H

#include <stddef.h>
#include <stdint.h>

#include "text/vocabulary.h"

// Whether a quick look finds nothing that normalisation could change.
int nfc_is_normal(const uint8_t *text, size_t bytes);

// Normalise valid UTF-8. *out is the caller's to free. The number of bytes, or BG_E_MEMORY.
int64_t nfc_normalize(const vocabulary *v, const uint8_t *text, size_t bytes, uint8_t **out);

#endif
