#include "kernels/layernorm_simd.h"

#include <math.h>

static inline void apply_row(float *y, const float *x, float mean, float rstd, const float *w, const float *b,
                             wasi_int C)
{
#pragma omp simd
    for (wasi_int c = 0; c < C; c++)
        y[c] = (x[c] - mean) * rstd * w[c] + b[c];
}

void WASI_SIMD(wasi_layer_norm_rows)(float *s, float *y, float *mean, float *rstd, const float *x, const float *r,
                                     const float *w, const float *b, float eps, wasi_int M, wasi_int C)
{
    for (wasi_int m = 0; m < M; m++, x += C, y += C) {
        const float *row = x;
        float sum = 0, square = 0;
        if (r) {
#pragma omp simd reduction(+ : sum)
            for (wasi_int c = 0; c < C; c++) {
                s[c] = x[c] + r[c];
                sum += s[c];
            }
            row = s;
            r += C;
            s += C;
        } else {
#pragma omp simd reduction(+ : sum)
            for (wasi_int c = 0; c < C; c++)
                sum += x[c];
        }
        float mu = sum / (float)C;
#pragma omp simd reduction(+ : square)
        for (wasi_int c = 0; c < C; c++)
            square += (row[c] - mu) * (row[c] - mu);
        mean[m] = mu;
        rstd[m] = 1.0f / sqrtf(square / (float)C + eps);
        apply_row(y, row, mu, rstd[m], w, b, C);
    }
}

void WASI_SIMD(wasi_layer_norm_apply_rows)(float *y, const float *x, const float *mean, const float *rstd,
                                           const float *w, const float *b, wasi_int M, wasi_int C)
{
    for (wasi_int m = 0; m < M; m++)
        apply_row(y + m * C, x + m * C, mean[m], rstd[m], w, b, C);
}

void WASI_SIMD(wasi_layer_norm_backward_rows)(float *dx, float *dw, float *db, const float *dy, const float *x,
                                              const float *mean, const float *rstd, const float *w,
                                              const float *add_to, wasi_int M, wasi_int C)
{
    for (wasi_int m = 0; m < M; m++, dx += C, dy += C, x += C) {
        float mu = mean[m], scale = rstd[m], sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
        for (wasi_int c = 0; c < C; c++) {
            float g = dy[c] * w[c];
            sum += g;
            dot += g * (x[c] - mu);
        }
        if (dw)
#pragma omp simd
            for (wasi_int c = 0; c < C; c++)
                dw[c] += dy[c] * ((x[c] - mu) * scale);
        if (db)
#pragma omp simd
            for (wasi_int c = 0; c < C; c++)
                db[c] += dy[c];
        float shift = sum / (float)C, slope = dot * scale * scale / (float)C;
        if (add_to) {
#pragma omp simd
            for (wasi_int c = 0; c < C; c++)
                dx[c] = (dy[c] * w[c] - shift - (x[c] - mu) * slope) * scale + add_to[c];
            add_to += C;
        } else {
#pragma omp simd
            for (wasi_int c = 0; c < C; c++)
                dx[c] = (dy[c] * w[c] - shift - (x[c] - mu) * slope) * scale;
        }
    }
}
