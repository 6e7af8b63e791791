#include "kernels/rmsnorm_simd.h"

#include <math.h>

static inline void apply_row(float *y, const float *x, float rstd, const float *w, wasi_int C)
{
#pragma omp simd
    for (wasi_int c = 0; c < C; c++)
        y[c] = x[c] * rstd * w[c];
}

void WASI_SIMD(wasi_rms_norm_rows)(float *y, float *rstd, const float *x, const float *w, float eps, wasi_int M,
                                   wasi_int C)
{
    for (wasi_int m = 0; m < M; m++, x += C, y += C) {
        float square = 0;
#pragma omp simd reduction(+ : square)
        for (wasi_int c = 0; c < C; c++)
            square += x[c] * x[c];
        rstd[m] = 1.0f / sqrtf(square / (float)C + eps);
        apply_row(y, x, rstd[m], w, C);
    }
}

void WASI_SIMD(wasi_rms_norm_apply_rows)(float *y, const float *x, const float *rstd, const float *w, wasi_int M,
                                         wasi_int C)
{
    for (wasi_int m = 0; m < M; m++)
        apply_row(y + m * C, x + m * C, rstd[m], w, C);
}

void WASI_SIMD(wasi_rms_norm_backward_rows)(float *dx, float *dw, const float *dy, const float *x, const float *rstd,
                                            const float *w, const float *add_to, wasi_int M, wasi_int C)
{
    for (wasi_int m = 0; m < M; m++, dx += C, dy += C, x += C) {
        float scale = rstd[m], dot = 0;
#pragma omp simd reduction(+ : dot)
        for (wasi_int c = 0; c < C; c++)
            dot += dy[c] * w[c] * x[c];
        if (dw)
#pragma omp simd
            for (wasi_int c = 0; c < C; c++)
                dw[c] += dy[c] * (x[c] * scale);
        float slope = dot * scale * scale / (float)C;
        if (add_to) {
#pragma omp simd
            for (wasi_int c = 0; c < C; c++)
                dx[c] = (dy[c] * w[c] - x[c] * slope) * scale + add_to[c];
            add_to += C;
        } else {
#pragma omp simd
            for (wasi_int c = 0; c < C; c++)
                dx[c] = (dy[c] * w[c] - x[c] * slope) * scale;
        }
    }
}
