// model.c: opens a packed model: maps the file, checks every field before it is used, finds the sections.
//
// After bg_header the file holds these sections, each starting at a multiple of 64 bytes:
//   embedding, output_norm, RoPE's frequencies, with a window also those of its layers; with signs of the
//   rotation those of each of WIDTH_*;
//   per layer: the norms that it has in the order of NORM_*, its matrices stage by stage, scales; with Gated
//   DeltaNet also rates, convolution, decay, step;
//   then the head: nothing when tied, or rows of floats; or float scales and int8 rows;
//   and behind what a certified head has in floats: upper residuals, residuals, norms, scales, upper bits of
//   codes, lower bits of codes;
//   or, of a ternary head, its packed matrix unless tied, and norms of its rows.
// The bytes of a packed matrix, and of a ternary embedding, are the bound kernel's own business: its
// weight_bytes.
#include "core/model.h"

#include <stdlib.h>
#include <string.h>

#include "core/fpstate.h"
#include "core/isa.h"
#include "core/rope.h"
#include "os/os.h"

enum { MAX_WIDTH = 1 << 22, MAX_LAYERS = 4096, MAX_VOCAB = 1 << 26, MAX_CONTEXT = 1 << 24 };
enum { MAX_DELTA_HEADS = 1 << 14, MAX_TAPS = 64 };

static int between(int64_t value, int64_t least, int64_t most) { return least <= value && value <= most; }

static int is_finite(float a) { return a - a == 0; }

static int finite(const float *a, int64_t n) {
  int ok = 1;
  for (int64_t i = 0; i < n; i++)
    ok &= is_finite(a[i]);
  return ok;
}

static int64_t channels_of(const bg_header *c) {
  return 2 * (int64_t)c->delta_key_heads * c->delta_key_dim +
         (int64_t)c->delta_value_heads * c->delta_value_dim;
}

// Some layers attend, and layers of both kinds have the norms of the simplest.
static int delta_is_sane(const bg_header *c) {
  if (!c->delta_period)
    return !c->delta_key_heads && !c->delta_value_heads && !c->delta_key_dim && !c->delta_value_dim &&
           !c->delta_taps && !c->delta_rates;
  return between(c->delta_period, 1, c->layers) && between(c->delta_key_heads, 1, MAX_DELTA_HEADS) &&
         between(c->delta_value_heads, 1, MAX_DELTA_HEADS) &&
         c->delta_value_heads % c->delta_key_heads == 0 && between(c->delta_key_dim, 1, MAX_HEAD_DIM) &&
         between(c->delta_value_dim, 1, MAX_HEAD_DIM) && between(channels_of(c), 1, MAX_WIDTH) &&
         between(c->delta_taps, 1, MAX_TAPS) && between(c->delta_rates, 0, DENSE_TYPES - 1) &&
         !c->sub_norms && !c->input_norms && !c->post_norms;
}

static int hadamard_is_sane(const bg_header *c) {
  const int32_t block = c->hadamard_block;
  if (!block)
    return !c->hadamard_signed && !c->hadamard_regrouped;
  return between(block, 4, MAX_WIDTH) && (block & (block - 1)) == 0 &&
         __builtin_ctz((unsigned)block) % 2 == 0 && c->hidden % block == 0 &&
         c->heads * c->head_dim % block == 0 && c->intermediate % block == 0 &&
         (!c->delta_period || c->delta_value_heads * c->delta_value_dim % block == 0) &&
         between(c->hadamard_signed, 0, 1) && between(c->hadamard_regrouped, 0, 1) && !c->input_norms;
}

static int header_is_sane(const bg_header *c, uint64_t bytes) {
  return memcmp(c->magic, "BITGENPK", 8) == 0 && c->version == PACKED_VERSION &&
         c->header_bytes == sizeof *c && c->file_bytes == bytes && between(c->hidden, 1, MAX_WIDTH) &&
         between(c->intermediate, 1, MAX_WIDTH) && between(c->layers, 1, MAX_LAYERS) &&
         between(c->heads, 1, MAX_WIDTH) && between(c->kv_heads, 1, c->heads) &&
         c->heads % c->kv_heads == 0 && between(c->head_dim, 2, MAX_HEAD_DIM) && c->head_dim % 2 == 0 &&
         between((int64_t)c->heads * c->head_dim, 1, MAX_WIDTH) && between(c->vocab, 1, MAX_VOCAB) &&
         between(c->context, 1, MAX_CONTEXT) && between(c->rope_dims, 2, c->head_dim) &&
         c->rope_dims % 2 == 0 && c->norm_eps >= 0 && is_finite(c->norm_eps) &&
         between(c->activation, 0, ACTIVATION_GELU_TANH) && between(c->sub_norms, 0, 1) &&
         between(c->rope_interleaved, 0, 1) && between(c->head, 0, HEAD_KINDS - 1) &&
         between(c->qk_norm, 0, 1) && between(c->input_norms, 0, 1) && between(c->post_norms, 0, 1) &&
         between(c->window, 0, MAX_CONTEXT) && between(c->window_period, 1, MAX_CONTEXT) &&
         c->embedding_scale > 0 && is_finite(c->embedding_scale) && c->attention_scale >= 0 &&
         is_finite(c->attention_scale) && c->rope_magnitude > 0 && is_finite(c->rope_magnitude) &&
         between(c->embedding, 0, EMBEDDING_TERNARY) && between(c->output, 0, DENSE_TYPES - 1) &&
         memchr(c->layout, 0, sizeof c->layout) && between(c->qk_norm_after_rope, 0, c->qk_norm) &&
         c->residual_scale > 0 && is_finite(c->residual_scale) && c->logit_divisor > 0 &&
         is_finite(c->logit_divisor) && between(c->attention_gate, 0, 1) && delta_is_sane(c) &&
         hadamard_is_sane(c);
}

const bg_stage bg_stages[STAGES][LAYER_KINDS] = {
    [BG_QKV] = {{1, {{BG_QKV, -1}}},
                {3, {{BG_Q, NORM_Q_IN}, {BG_K, NORM_K_IN}, {BG_V, NORM_V_IN}}},
                {1, {{BG_DELTA_IN, -1}}}},
    [BG_O] = {{1, {{BG_O, -1}}}, {1, {{BG_O, -1}}}, {1, {{BG_DELTA_OUT, -1}}}},
    [BG_GATE_UP] = {{1, {{BG_GATE_UP, -1}}},
                    {2, {{BG_GATE, NORM_GATE_IN}, {BG_UP, NORM_UP_IN}}},
                    {1, {{BG_GATE_UP, -1}}}},
    [BG_DOWN] = {{1, {{BG_DOWN, -1}}}, {1, {{BG_DOWN, -1}}}, {1, {{BG_DOWN, -1}}}},
};

static int32_t kind_of(const bg_header *c, int32_t layer) {
  if (c->delta_period && (layer + 1) % c->delta_period)
    return LAYER_DELTA;
  return c->input_norms ? LAYER_APART : LAYER_FUSED;
}

// Both kernels of a role are there, compute this matrix and read the same packed bytes; all
// have groups alike.
static int kernels_fit(const bg_isa *isa, int32_t role, int32_t m, int32_t k) {
  const bg_kernel *one = isa->gemv[role], *many = isa->gemm[role];
  return one && many && one->m == m && one->k == k && many->m == m && many->k == k &&
         one->weight_bytes == many->weight_bytes && isa->gemv[BG_O] && one->group == isa->gemv[BG_O]->group &&
         many->group == one->group;
}

static int has_ternary_head(const bg_header *c) {
  return c->head == HEAD_TIED_TERNARY || c->head == HEAD_OWN_TERNARY;
}

// Where embedding or head are ternary there are kernels for them, which give whole vectors of a row.
static int head_kernels_fit(const bg_model *m) {
  const bg_header *c = &m->config;
  if (c->embedding != EMBEDDING_TERNARY && !has_ternary_head(c))
    return 1;
  return kernels_fit(m->isa, BG_HEAD, c->vocab, c->hidden) && m->isa->gemv[BG_HEAD]->unpack_row &&
         c->hidden == padded(c->hidden);
}

// Places the parts of every matrix of a stage, and sees that there are kernels for it. rows: of each of its parts,
// `first` and on.
static int32_t find_parts_of(bg_model *m, const bg_stage *s, int32_t first, int32_t n, const int32_t *rows,
                             int32_t columns) {
  for (int32_t i = 0, part = first; i < s->n; i++) {
    const int32_t role = s->matrices[i].role;
    int32_t row = 0;
    for (int32_t p = 0; p < n / s->n; p++, part++) {
      m->parts[part] = (bg_part){role, row};
      row += rows[part];
    }
    if (!kernels_fit(m->isa, role, row, columns))
      return BG_E_NO_KERNEL;
  }
  return BG_OK;
}

static int32_t find_parts(bg_model *m) {
  const bg_header *c = &m->config;
  const int32_t context = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
  const int32_t rows[PARTS] = {context * (1 + c->attention_gate),
                               kv,
                               kv,
                               c->hidden,
                               c->intermediate,
                               c->intermediate,
                               c->hidden,
                               m->delta.channels,
                               m->delta.inner,
                               c->hidden};
  const struct {
    int32_t stage, first, n, columns;
  } of_layers[] = {{BG_QKV, PART_Q, 3, c->hidden},         {BG_O, PART_O, 1, context},
                   {BG_GATE_UP, PART_GATE, 2, c->hidden},  {BG_DOWN, PART_DOWN, 1, c->intermediate},
                   {BG_QKV, PART_DELTA_QKV, 2, c->hidden}, {BG_O, PART_DELTA_OUT, 1, m->delta.inner}};
  const int32_t n = c->delta_period ? 6 : 4, attends = c->input_norms ? LAYER_APART : LAYER_FUSED;
  int32_t code = BG_OK;
  for (int32_t i = 0; i < n && code == BG_OK; i++)
    code = find_parts_of(m, &bg_stages[of_layers[i].stage][i < 4 ? attends : LAYER_DELTA], of_layers[i].first,
                         of_layers[i].n, rows, of_layers[i].columns);
  return code == BG_OK && !head_kernels_fit(m) ? BG_E_NO_KERNEL : code;
}

// What follows from the header.
static void find_sizes(bg_model *m) {
  const bg_header *c = &m->config;
  bg_delta_sizes *d = &m->delta;
  for (int32_t l = 0; l < c->layers; l++)
    d->layers += kind_of(c, l) == LAYER_DELTA;
  m->caches = c->layers - d->layers;
  d->keys = c->delta_key_heads * c->delta_key_dim;
  d->inner = c->delta_value_heads * c->delta_value_dim;
  d->channels = 2 * d->keys + d->inner;
  d->slices = (c->delta_value_dim + DELTA_COLUMNS - 1) / DELTA_COLUMNS;
  d->slice = (size_t)c->delta_key_dim * DELTA_COLUMNS;
  d->state = (size_t)c->delta_value_heads * (size_t)d->slices * d->slice;
  d->tail = (size_t)(c->delta_taps > 0 ? c->delta_taps - 1 : 0) * (size_t)d->channels;
}

// A walk over the sections; `bytes` becomes 0 for good when one does not fit.
typedef struct {
  const uint8_t *at;
  uint64_t bytes;
} cursor;

static const void *take(cursor *c, uint64_t bytes) {
  const uint8_t *section = c->at;
  uint64_t aligned = (bytes + PACKED_ALIGN - 1) / PACKED_ALIGN * PACKED_ALIGN;
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

static bg_dense take_dense(cursor *c, const bg_model *m, int32_t type) {
  const uint64_t numbers = (uint64_t)m->config.vocab * (uint64_t)padded(m->config.hidden);
  return (bg_dense){take(c, numbers * m->isa->ops->dense[type].width), type};
}

// The embedding, or the head that is not tied to it, as kernels read it.
static const uint8_t *take_ternary(cursor *c, const bg_model *m) {
  return take(c, m->isa->gemv[BG_HEAD]->weight_bytes);
}

// What Gated DeltaNet has in floats.
static int32_t find_delta(cursor *at, const bg_model *m, bg_layer *l) {
  const bg_header *c = &m->config;
  const int32_t heads = c->delta_value_heads, channels = padded(m->delta.channels);
  l->rates = take(at, 2 * (uint64_t)padded(heads) * (uint64_t)padded(c->hidden) *
                          m->isa->ops->dense[c->delta_rates].width);
  l->convolution = take(at, (uint64_t)c->delta_taps * (uint64_t)channels * sizeof(float));
  l->decay = take_floats(at, heads);
  l->step = take_floats(at, heads);
  if (!l->step)
    return BG_E_FORMAT;
  return finite(l->convolution, (int64_t)c->delta_taps * channels) && finite(l->decay, heads) &&
                 finite(l->step, heads)
             ? BG_OK
             : BG_E_VALUE;
}

static int32_t find_layer(cursor *at, const bg_model *m, bg_layer *l) {
  const bg_header *c = &m->config;
  const int32_t delta = l->kind == LAYER_DELTA, hidden = c->hidden,
                d = c->qk_norm && !delta ? c->head_dim : 0, own = c->input_norms ? hidden : 0,
                post = c->post_norms ? hidden : 0, inner = c->sub_norms || c->input_norms;
  const int32_t lengths[NORMS] = {[NORM_ATTENTION] = hidden,
                                  [NORM_Q_IN] = own,
                                  [NORM_K_IN] = own,
                                  [NORM_V_IN] = own,
                                  [NORM_Q] = d,
                                  [NORM_K] = d,
                                  [NORM_O_IN] = inner * c->heads * c->head_dim,
                                  [NORM_POST_ATTENTION] = post,
                                  [NORM_FFN] = hidden,
                                  [NORM_GATE_IN] = own,
                                  [NORM_UP_IN] = own,
                                  [NORM_DOWN_IN] = inner * c->intermediate,
                                  [NORM_POST_FFN] = post,
                                  [NORM_DELTA] = delta * c->delta_value_dim};
  for (int32_t i = 0; i < NORMS; i++)
    l->norms[i] = lengths[i] ? take_floats(at, lengths[i]) : NULL;
  for (int32_t stage = 0; stage < STAGES; stage++)
    for (int32_t i = 0; i < bg_stages[stage][l->kind].n; i++) {
      const int32_t role = bg_stages[stage][l->kind].matrices[i].role;
      l->packed[role] = take(at, m->isa->gemv[role]->weight_bytes);
    }
  l->scales = take(at, SCALES * sizeof(float));
  if (!l->scales)
    return BG_E_FORMAT;
  int ok = finite(l->scales, SCALES);
  for (int32_t i = 0; i < NORMS; i++)
    ok = ok && (!lengths[i] || finite(l->norms[i], lengths[i]));
  if (ok && delta)
    return find_delta(at, m, l);
  return ok ? BG_OK : BG_E_VALUE;
}

// What certified_head.c screens with.
static int32_t find_certificate(cursor *at, bg_model *m) {
  const int32_t vocab = m->config.vocab;
  const uint64_t columns = (uint64_t)round_up(m->config.hidden, SCREEN_COLUMNS);
  m->head_upper_residuals = take_floats(at, vocab);
  m->head_residuals = take_floats(at, vocab);
  m->head_norms = take_floats(at, vocab);
  m->head_scales = take_floats(at, vocab);
  m->head_upper = take(at, (uint64_t)vocab * UPPER_BYTES(columns));
  m->head_lower = take(at, (uint64_t)vocab * LOWER_BYTES(columns));
  if (!m->head_lower)
    return BG_E_FORMAT;
  return finite(m->head_upper_residuals, vocab) && finite(m->head_residuals, vocab) &&
                 finite(m->head_norms, vocab) && finite(m->head_scales, vocab)
             ? BG_OK
             : BG_E_VALUE;
}

static int32_t find_ternary_head(cursor *at, bg_model *m) {
  const int32_t vocab = m->config.vocab;
  m->ternary_head = m->config.head == HEAD_TIED_TERNARY ? m->ternary_embedding : take_ternary(at, m);
  m->head_norms = take_floats(at, vocab);
  if (!m->ternary_head || !m->head_norms)
    return BG_E_FORMAT;
  return finite(m->head_norms, vocab) ? BG_OK : BG_E_VALUE;
}

static int32_t find_head(cursor *at, bg_model *m) {
  const int32_t kind = m->config.head, vocab = m->config.vocab;
  if (has_ternary_head(&m->config))
    return find_ternary_head(at, m);
  if (kind == HEAD_TIED || kind == HEAD_TIED_CERTIFIED)
    m->output = m->embedding;
  if (kind == HEAD_OWN || kind == HEAD_OWN_CERTIFIED)
    m->output = take_dense(at, m, m->config.output);
  if (kind == HEAD_I8) {
    m->head_scales = take_floats(at, vocab);
    m->head_i8 = take(at, (uint64_t)vocab * (uint64_t)padded(m->config.hidden));
    if (!m->head_i8)
      return BG_E_FORMAT;
    return finite(m->head_scales, vocab) ? BG_OK : BG_E_VALUE;
  }
  if (!m->output.rows)
    return BG_E_FORMAT;
  return kind == HEAD_TIED_CERTIFIED || kind == HEAD_OWN_CERTIFIED ? find_certificate(at, m) : BG_OK;
}

// RoPE's frequencies, with which no position has an angle beyond what rope_cos_sin takes.
static int32_t find_frequencies(cursor *at, bg_model *m, const float **frequencies) {
  const int32_t n = m->config.rope_dims / 2;
  *frequencies = take_floats(at, n);
  if (!*frequencies)
    return BG_E_FORMAT;
  int ok = 1;
  for (int32_t i = 0; i < n; i++)
    ok &= (*frequencies)[i] >= 0 && (*frequencies)[i] * (float)m->config.context <= MAX_ANGLE;
  return ok ? BG_OK : BG_E_FORMAT;
}

// The rotation's signs, each 1 or -1.
static int32_t find_signs(cursor *at, bg_model *m) {
  const bg_header *c = &m->config;
  const int32_t widths[WIDTHS] = {c->hidden, c->heads * c->head_dim, c->intermediate, m->delta.inner};
  int ok = 1;
  for (int32_t w = 0; w < WIDTHS; w++) {
    if (!widths[w])
      continue;
    const float *signs = m->signs[w] = take_floats(at, widths[w]);
    if (!signs)
      return BG_E_FORMAT;
    for (int32_t i = 0; i < widths[w]; i++)
      ok &= signs[i] == 1 || signs[i] == -1;
  }
  return ok ? BG_OK : BG_E_FORMAT;
}

static int32_t find_layers(cursor *at, bg_model *m) {
  int32_t code = BG_OK, seen[LAYER_KINDS] = {0};
  for (int32_t i = 0; i < m->config.layers && code == BG_OK; i++) {
    bg_layer *l = &m->layers[i];
    l->kind = kind_of(&m->config, i);
    l->index = seen[l->kind]++;
    code = find_layer(at, m, l);
  }
  return code;
}

static int32_t find_sections(bg_model *m) {
  const bg_header *c = &m->config;
  cursor at = {m->packed + sizeof *c, m->packed_bytes - sizeof *c};
  if (c->embedding == EMBEDDING_TERNARY)
    m->ternary_embedding = take_ternary(&at, m);
  else
    m->embedding = take_dense(&at, m, c->embedding);
  m->output_norm = take_floats(&at, c->hidden);
  if (!m->output_norm)
    return BG_E_FORMAT;
  if (!finite(m->output_norm, c->hidden))
    return BG_E_VALUE;
  int32_t code = BG_OK;
  for (int32_t i = 0; i < (c->window ? 2 : 1) && code == BG_OK; i++)
    code = find_frequencies(&at, m, &m->rope_frequency[i]);
  if (code == BG_OK && c->hadamard_signed)
    code = find_signs(&at, m);
  if (code == BG_OK)
    code = find_layers(&at, m);
  if (code == BG_OK)
    code = find_head(&at, m);
  return code == BG_OK && at.bytes ? BG_E_FORMAT : code;
}

// Where the model is in the file, and the vocabulary if there is one.
static int32_t find_contents(bg_model *m) {
  bg_trailer t;
  m->packed = m->map;
  m->packed_bytes = m->bytes;
  memcpy(&t, m->map + m->bytes - sizeof t, sizeof t);
  if (memcmp(t.magic, "BITGENST", sizeof t.magic) != 0)
    return BG_OK;
  const uint64_t room = m->bytes - sizeof t;
  if (t.model_offset % PACKED_ALIGN || t.model_offset > room || t.model_bytes > room - t.model_offset ||
      t.model_bytes < sizeof(bg_header) || t.vocabulary_offset % PACKED_ALIGN || t.vocabulary_offset > room ||
      t.vocabulary_bytes > room - t.vocabulary_offset)
    return BG_E_FORMAT;
  m->packed = m->map + t.model_offset;
  m->packed_bytes = (size_t)t.model_bytes;
  m->trailer = t;
  m->vocabulary = m->map + t.vocabulary_offset;
  m->vocabulary_bytes = (size_t)t.vocabulary_bytes;
  return BG_OK;
}

static int32_t open_model(bg_model *m, const char *path) {
  bg_header *c = &m->config;
  int32_t code = os_map(path, &m->map, &m->bytes);
  if (code == BG_OK)
    code = m->bytes < sizeof *c ? BG_E_FORMAT : find_contents(m);
  if (code != BG_OK)
    return code;
  memcpy(c, m->packed, sizeof *c);
  if (!header_is_sane(c, m->packed_bytes))
    return BG_E_FORMAT;
  if (strcmp(c->layout, m->isa->layout) != 0)
    return BG_E_LAYOUT;
  find_sizes(m);
  code = find_parts(m);
  if (code != BG_OK)
    return code;
  m->layers = calloc((size_t)c->layers, sizeof *m->layers);
  if (!m->layers)
    return BG_E_MEMORY;
  m->attention_scale =
      c->attention_scale > 0 ? c->attention_scale : 1.0f / __builtin_sqrtf((float)c->head_dim);
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
  free(m);
}

int32_t bg_vocab(const bg_model *m) { return m ? m->config.vocab : BG_E_ARGUMENT; }
int32_t bg_context(const bg_model *m) { return m ? m->config.context : BG_E_ARGUMENT; }

const void *bg_vocabulary(const bg_model *m, size_t *bytes) {
  if (bytes)
    *bytes = m ? m->vocabulary_bytes : 0;
  return m ? m->vocabulary : NULL;
}
