#include "kernels/bf16_simd.h"

typedef union {
    float value;
    uint32_t bits;
} number;

static inline uint16_t rounded(float value)
{
    number x = {value};
    uint32_t nearest = (x.bits + 0x7fff + (x.bits >> 16 & 1)) >> 16;
    uint32_t quiet_nan = x.bits >> 16 | 0x40; /* adding to a NaN's bits could carry it over to zero */
    return (uint16_t)((x.bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : nearest);
}

static inline float expanded(uint16_t bits)
{
    number x = {.bits = (uint32_t)bits << 16};
    return x.value;
}

void WASI_SIMD(wasi_bf16_round_span)(uint16_t *out, const float *x, wasi_int n)
{
    for (wasi_int i = 0; i < n; i++)
        out[i] = rounded(x[i]);
}

void WASI_SIMD(wasi_bf16_expand_span)(float *out, const uint16_t *x, wasi_int n)
{
    for (wasi_int i = 0; i < n; i++)
        out[i] = expanded(x[i]);
}

void WASI_SIMD(wasi_bf16_add_span)(uint16_t *sum, const float *x, wasi_int n)
{
    for (wasi_int i = 0; i < n; i++)
        sum[i] = rounded(expanded(sum[i]) + x[i]);
}
