// The kernels of this library by instruction-set level, best first.
#include "kernel.h"

extern const bg_kernel bg_i2_s_gemm_m300_k1000_bm4_bk128__scalar;
extern const bg_kernel bg_i2_s_gemm_m300_k1000_bm4_bk128_nr8_g8__avx2;
extern const bg_kernel bg_i2_s_gemv_m300_k1000_bm4_bk128__scalar;
extern const bg_kernel bg_i2_s_gemv_m300_k1000_bm4_bk128_pf2048__avx2;

extern const bg_ops bg_ops__avx2;
int32_t bg_probe__avx2(void);
int64_t bg_peak__avx2(int64_t rounds);

static const bg_kernel *const kernels__avx2[] = {
    &bg_i2_s_gemv_m300_k1000_bm4_bk128_pf2048__avx2,
    &bg_i2_s_gemm_m300_k1000_bm4_bk128_nr8_g8__avx2,
};

static const bg_isa isa__avx2 = {
    .name = "avx2",
    .probe = bg_probe__avx2,
    .peak = bg_peak__avx2,
    .ops = &bg_ops__avx2,
    .layout = "qkv=some",
    .kernels = kernels__avx2,
    .n_kernels = 2,
    .gemv[BG_QKV] = &bg_i2_s_gemv_m300_k1000_bm4_bk128_pf2048__avx2,
    .gemm[BG_QKV] = &bg_i2_s_gemm_m300_k1000_bm4_bk128_nr8_g8__avx2,
    .gemv[BG_O] = &bg_i2_s_gemv_m300_k1000_bm4_bk128_pf2048__avx2,
    .gemm[BG_O] = &bg_i2_s_gemm_m300_k1000_bm4_bk128_nr8_g8__avx2,
    .gemv[BG_GATE_UP] = &bg_i2_s_gemv_m300_k1000_bm4_bk128_pf2048__avx2,
    .gemm[BG_GATE_UP] = &bg_i2_s_gemm_m300_k1000_bm4_bk128_nr8_g8__avx2,
    .gemv[BG_DOWN] = &bg_i2_s_gemv_m300_k1000_bm4_bk128_pf2048__avx2,
    .gemm[BG_DOWN] = &bg_i2_s_gemm_m300_k1000_bm4_bk128_nr8_g8__avx2,
};

extern const bg_ops bg_ops__scalar;
int32_t bg_probe__scalar(void);
int64_t bg_peak__scalar(int64_t rounds);

static const bg_kernel *const kernels__scalar[] = {
    &bg_i2_s_gemv_m300_k1000_bm4_bk128__scalar,
    &bg_i2_s_gemm_m300_k1000_bm4_bk128__scalar,
};

static const bg_isa isa__scalar = {
    .name = "scalar",
    .probe = bg_probe__scalar,
    .peak = bg_peak__scalar,
    .ops = &bg_ops__scalar,
    .layout = "",
    .kernels = kernels__scalar,
    .n_kernels = 2,
};

const bg_isa *const bg_isas[] = {
    &isa__avx2,
    &isa__scalar,
    NULL,
};
