#include "kernels/silu_simd.h"

#include <math.h>

#include "common/exp.h"

/* 1 / (1 + exp(-x)), by the exponential of -|x|, which does not overflow. */
static inline float sigmoid(float x)
{
    float e = wasi_exp(-fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

void WASI_SIMD(wasi_silu_some)(float *g, const float *h, wasi_int n)
{
#pragma omp simd
    for (wasi_int i = 0; i < n; i++)
        g[i] = h[i] * sigmoid(h[i]);
}

void WASI_SIMD(wasi_silu_backward_some)(float *dh, const float *dy, const float *h, wasi_int n)
{
#pragma omp simd
    for (wasi_int i = 0; i < n; i++) {
        float s = sigmoid(h[i]);
        dh[i] = dy[i] * (s * (1.0f + h[i] * (1.0f - s)));
    }
}

void WASI_SIMD(wasi_swiglu_some)(float *g, const float *a, const float *b, wasi_int n)
{
#pragma omp simd
    for (wasi_int i = 0; i < n; i++)
        g[i] = a[i] * sigmoid(a[i]) * b[i];
}

void WASI_SIMD(wasi_swiglu_backward_some)(float *da, float *db, const float *dy, const float *a, const float *b,
                                          wasi_int n)
{
#pragma omp simd
    for (wasi_int i = 0; i < n; i++) {
        float d = dy[i], h = a[i], s = sigmoid(h), up = b[i];
        da[i] = d * up * (s * (1.0f + h * (1.0f - s)));
        db[i] = d * (h * s);
    }
}
