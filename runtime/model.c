// model.c: opens a packed model: maps the file, checks every field before it is used, finds the sections.
//
// After bg_header the file holds these sections, each starting at a multiple of 64 bytes:
//   embedding, output_norm;  per layer: attn_norm, qkv, attn_sub_norm?, o, ffn_norm, gate_up, ffn_sub_norm?,
//   down, scales;  then the head: nothing when tied, float16 rows, or float scales and int8 rows.
// The bytes of a packed matrix are the bound kernel's own business: its weight_bytes.
#include "model.h"

#include <stdlib.h>
#include <string.h>

#include "fpstate.h"
#include "isa.h"
#include "os.h"
#include "rope.h"

enum {
  MAX_WIDTH = 1 << 22,
  MAX_LAYERS = 4096,
  MAX_VOCAB = 1 << 26,
  MAX_CONTEXT = 1 << 24
};

static int between(int64_t value, int64_t least, int64_t most) { return least <= value && value <= most; }

static int finite(const float *a, int64_t n) {
  int ok = 1;
  for (int64_t i = 0; i < n; i++)
    ok &= a[i] - a[i] == 0;
  return ok;
}

static int header_is_sane(const bg_header *c, uint64_t bytes) {
  return memcmp(c->magic, "BITGENPK", 8) == 0 && c->version == 1 && c->header_bytes == sizeof *c &&
         c->file_bytes == bytes && between(c->hidden, 1, MAX_WIDTH) &&
         between(c->intermediate, 1, MAX_WIDTH) && between(c->layers, 1, MAX_LAYERS) &&
         between(c->heads, 1, MAX_WIDTH) && between(c->kv_heads, 1, c->heads) &&
         c->heads % c->kv_heads == 0 && between(c->head_dim, 2, MAX_HEAD_DIM) && c->head_dim % 2 == 0 &&
         between((int64_t)c->heads * c->head_dim, 1, MAX_WIDTH) && between(c->vocab, 1, MAX_VOCAB) &&
         between(c->context, 1, MAX_CONTEXT) && c->rope_theta >= 1 && finite(&c->rope_theta, 1) &&
         c->norm_eps >= 0 && finite(&c->norm_eps, 1) && between(c->activation, 0, 1) &&
         between(c->sub_norms, 0, 1) && between(c->rope_interleaved, 0, 1) &&
         between(c->head, 0, HEAD_KINDS - 1) && memchr(c->layout, 0, sizeof c->layout);
}

// Both kernels of every role are there, compute the model's matrices and read the same packed bytes.
static int kernels_fit(const bg_isa *isa, const bg_header *c) {
  const int32_t attention = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
  const int32_t m[BG_ROLES] = {attention + 2 * kv, c->hidden, 2 * c->intermediate, c->hidden};
  const int32_t k[BG_ROLES] = {c->hidden, attention, c->hidden, c->intermediate};
  for (int role = 0; role < BG_ROLES; role++) {
    const bg_kernel *one = isa->gemv[role], *many = isa->gemm[role];
    if (!one || !many || one->m != m[role] || one->k != k[role] || many->m != m[role] || many->k != k[role] ||
        one->weight_bytes != many->weight_bytes)
      return 0;
  }
  return 1;
}

// A walk over the sections; `bytes` becomes 0 for good when one does not fit.
typedef struct {
  const uint8_t *at;
  uint64_t bytes;
} cursor;

static const void *take(cursor *c, uint64_t bytes) {
  const uint8_t *section = c->at;
  uint64_t aligned = (bytes + 63) / 64 * 64;
  if (c->bytes < aligned) {
    *c = (cursor){NULL, 0};
    return NULL;
  }
  c->at += aligned;
  c->bytes -= aligned;
  return section;
}

static const float *take_floats(cursor *c, int64_t n) {
  return take(c, (uint64_t)padded((int32_t)n) * sizeof(float));
}

static int32_t find_layer(cursor *at, const bg_model *m, bg_layer *l) {
  const bg_header *c = &m->config;
  const int32_t attention = c->heads * c->head_dim;
  l->attn_norm = take_floats(at, c->hidden);
  l->qkv = take(at, m->isa->gemv[BG_QKV]->weight_bytes);
  l->attn_sub_norm = c->sub_norms ? take_floats(at, attention) : NULL;
  l->o = take(at, m->isa->gemv[BG_O]->weight_bytes);
  l->ffn_norm = take_floats(at, c->hidden);
  l->gate_up = take(at, m->isa->gemv[BG_GATE_UP]->weight_bytes);
  l->ffn_sub_norm = c->sub_norms ? take_floats(at, c->intermediate) : NULL;
  l->down = take(at, m->isa->gemv[BG_DOWN]->weight_bytes);
  l->scales = take(at, SCALES * sizeof(float));
  if (!l->scales)
    return BG_E_FORMAT;
  int ok = finite(l->attn_norm, c->hidden) && finite(l->ffn_norm, c->hidden) && finite(l->scales, SCALES);
  if (c->sub_norms)
    ok = ok && finite(l->attn_sub_norm, attention) && finite(l->ffn_sub_norm, c->intermediate);
  return ok ? BG_OK : BG_E_VALUE;
}

static int32_t find_head(cursor *at, bg_model *m) {
  const uint64_t elements = (uint64_t)m->config.vocab * (uint64_t)padded(m->config.hidden);
  const int32_t kind = m->config.head, vocab = m->config.vocab;
  const int certified = kind == HEAD_TIED_CERTIFIED || kind == HEAD_CERTIFIED;
  if (kind == HEAD_TIED_F16 || kind == HEAD_TIED_CERTIFIED)
    m->head_f16 = m->embedding;
  if (kind == HEAD_F16 || kind == HEAD_CERTIFIED)
    m->head_f16 = take(at, elements * sizeof *m->head_f16);
  if (certified) {
    m->head_residuals = take_floats(at, vocab);
    m->head_norms = take_floats(at, vocab);
  }
  if (certified || kind == HEAD_I8) {
    m->head_scales = take_floats(at, vocab);
    m->head_i8 = take(at, elements);
    if (!m->head_i8)
      return BG_E_FORMAT;
    if (!finite(m->head_scales, vocab))
      return BG_E_VALUE;
  }
  if (certified && !(finite(m->head_residuals, vocab) && finite(m->head_norms, vocab)))
    return BG_E_VALUE;
  return m->head_f16 || kind == HEAD_I8 ? BG_OK : BG_E_FORMAT;
}

static int32_t find_sections(bg_model *m) {
  const bg_header *c = &m->config;
  cursor at = {m->packed + sizeof *c, m->packed_bytes - sizeof *c};
  m->embedding = take(&at, (uint64_t)c->vocab * (uint64_t)padded(c->hidden) * sizeof *m->embedding);
  m->output_norm = take_floats(&at, c->hidden);
  if (!m->output_norm)
    return BG_E_FORMAT;
  if (!finite(m->output_norm, c->hidden))
    return BG_E_VALUE;
  for (int32_t l = 0; l < c->layers; l++) {
    int32_t code = find_layer(&at, m, &m->layers[l]);
    if (code != BG_OK)
      return code;
  }
  int32_t code = find_head(&at, m);
  return code == BG_OK && at.bytes ? BG_E_FORMAT : code;
}

// Where the model is in the file, and the vocabulary if there is one.
static int32_t find_parts(bg_model *m) {
  bg_trailer t;
  m->packed = m->map;
  m->packed_bytes = m->bytes;
  memcpy(&t, m->map + m->bytes - sizeof t, sizeof t);
  if (memcmp(t.magic, "BITGENST", sizeof t.magic) != 0)
    return BG_OK;
  const uint64_t room = m->bytes - sizeof t;
  if (t.model_offset % 64 || t.model_offset > room || t.model_bytes > room - t.model_offset ||
      t.model_bytes < sizeof(bg_header) || t.vocabulary_offset % 64 || t.vocabulary_offset > room ||
      t.vocabulary_bytes > room - t.vocabulary_offset)
    return BG_E_FORMAT;
  m->packed = m->map + t.model_offset;
  m->packed_bytes = (size_t)t.model_bytes;
  m->vocabulary = m->map + t.vocabulary_offset;
  m->vocabulary_bytes = (size_t)t.vocabulary_bytes;
  return BG_OK;
}

static int32_t open_model(bg_model *m, const char *path) {
  bg_header *c = &m->config;
  int32_t code = os_map(path, &m->map, &m->bytes);
  if (code == BG_OK)
    code = m->bytes < sizeof *c ? BG_E_FORMAT : find_parts(m);
  if (code != BG_OK)
    return code;
  memcpy(c, m->packed, sizeof *c);
  if (!header_is_sane(c, m->packed_bytes))
    return BG_E_FORMAT;
  if (strcmp(c->layout, m->isa->layout) != 0)
    return BG_E_LAYOUT;
  if (!kernels_fit(m->isa, c))
    return BG_E_NO_KERNEL;
  m->layers = calloc((size_t)c->layers, sizeof *m->layers);
  m->rope_frequency = calloc((size_t)c->head_dim / 2, sizeof *m->rope_frequency);
  if (!m->layers || !m->rope_frequency)
    return BG_E_MEMORY;
  for (int32_t i = 0; i < c->head_dim / 2; i++)
    m->rope_frequency[i] = rope_frequency(c->rope_theta, i, c->head_dim);
  os_prefetch(m->map, m->bytes);
  return find_sections(m);
}

int32_t bg_open(const char *path, int32_t isa, bg_model **out) {
  if (!path || !out)
    return BG_E_ARGUMENT;
  *out = NULL;
  bg_model *m = calloc(1, sizeof *m);
  if (!m)
    return BG_E_MEMORY;
  int32_t code = isa_find(isa, &m->isa);
  const uint64_t callers = fp_default();
  if (code == BG_OK)
    code = open_model(m, path);
  fp_set(callers);
  if (code == BG_OK)
    *out = m;
  else
    bg_close(m);
  return code;
}

void bg_close(bg_model *m) {
  if (!m)
    return;
  if (m->map)
    os_unmap(m->map, m->bytes);
  free(m->layers);
  free(m->rope_frequency);
  free(m);
}

int32_t bg_vocab(const bg_model *m) { return m ? m->config.vocab : BG_E_ARGUMENT; }
int32_t bg_context(const bg_model *m) { return m ? m->config.context : BG_E_ARGUMENT; }

const void *bg_vocabulary(const bg_model *m, size_t *bytes) {
  *bytes = m->vocabulary_bytes;
  return m->vocabulary;
}
