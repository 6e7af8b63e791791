#include "kernels/batchnorm_simd.h"

#include <string.h>

#ifdef WASI_ISA_AVX512
#include <immintrin.h>
#endif

void WASI_SIMD(wasi_batch_norm_moments)(float *restrict mean, float *restrict square, const float *x, wasi_int M,
                                        wasi_int C)
{
    memset(mean, 0, (size_t)C * sizeof *mean);
    memset(square, 0, (size_t)C * sizeof *square);
    for (wasi_int m = 0; m < M; m++)
#pragma omp simd
        for (wasi_int c = 0; c < C; c++)
            mean[c] += x[m * C + c];
#pragma omp simd
    for (wasi_int c = 0; c < C; c++)
        mean[c] /= (float)M;
    for (wasi_int m = 0; m < M; m++)
#pragma omp simd
        for (wasi_int c = 0; c < C; c++)
            square[c] += (x[m * C + c] - mean[c]) * (x[m * C + c] - mean[c]);
}

/* NaN stays NaN. */
static inline float positive(float y)
{
    return y < 0.0f ? 0.0f : y;
}

void WASI_SIMD(wasi_batch_norm_rows)(float *y, const float *x, const float *r, const float *mean, const float *rstd,
                                     const float *w, const float *b, bool relu, wasi_int M, wasi_int C)
{
    for (wasi_int m = 0; m < M; m++, y += C, x += C) {
        if (r) {
#pragma omp simd
            for (wasi_int c = 0; c < C; c++)
                y[c] = (x[c] - mean[c]) * rstd[c] * w[c] + b[c] + r[c];
            r += C;
        } else {
#pragma omp simd
            for (wasi_int c = 0; c < C; c++)
                y[c] = (x[c] - mean[c]) * rstd[c] * w[c] + b[c];
        }
        if (relu)
#pragma omp simd
            for (wasi_int c = 0; c < C; c++)
                y[c] = positive(y[c]);
    }
}

void WASI_SIMD(wasi_batch_norm_sums)(float *restrict sum, float *restrict dot, const float *dy, const float *x,
                                     const float *mean, const float *rstd, const float *w, const float *b, bool relu,
                                     wasi_int M, wasi_int C)
{
    memset(sum, 0, (size_t)C * sizeof *sum);
    memset(dot, 0, (size_t)C * sizeof *dot);
    for (wasi_int m = 0; m < M; m++, x += C, dy += C) {
        if (relu) {
#pragma omp simd
            for (wasi_int c = 0; c < C; c++) {
                float off = x[c] - mean[c], g = off * rstd[c] * w[c] + b[c] > 0.0f ? dy[c] : 0.0f;
                sum[c] += g;
                dot[c] += g * off;
            }
        } else {
#pragma omp simd
            for (wasi_int c = 0; c < C; c++) {
                sum[c] += dy[c];
                dot[c] += dy[c] * (x[c] - mean[c]);
            }
        }
    }
}

void WASI_SIMD(wasi_batch_norm_backward_rows)(float *dx, const float *dy, const float *x, const float *mean,
                                              const float *rstd, const float *w, const float *b, const float *shift,
                                              const float *slope, bool relu, wasi_int M, wasi_int C)
{
    for (wasi_int m = 0; m < M; m++, dx += C, x += C, dy += C) {
        if (relu) {
#pragma omp simd
            for (wasi_int c = 0; c < C; c++) {
                float off = x[c] - mean[c], g = off * rstd[c] * w[c] + b[c] > 0.0f ? dy[c] : 0.0f;
                dx[c] = rstd[c] * w[c] * (g - shift[c] - off * slope[c]);
            }
        } else {
#pragma omp simd
            for (wasi_int c = 0; c < C; c++)
                dx[c] = rstd[c] * w[c] * (dy[c] - shift[c] - (x[c] - mean[c]) * slope[c]);
        }
    }
}

void WASI_SIMD(wasi_positive_bits)(uint8_t *mask, const float *y, wasi_int n)
{
    wasi_int e = 0;
#ifdef WASI_ISA_AVX512
    for (; e + 16 <= n; e += 16) {
        uint16_t bits = _mm512_cmp_ps_mask(_mm512_loadu_ps(y + e), _mm512_setzero_ps(), _CMP_GT_OQ);
        memcpy(mask + e / 8, &bits, sizeof bits);
    }
#endif
    for (; e < n; e += 8) {
        unsigned bits = 0;
        for (wasi_int i = e; i < WASI_MIN(e + 8, n); i++)
            bits |= (unsigned)(y[i] > 0.0f) << (i - e);
        mask[e / 8] = (uint8_t)bits;
    }
}

void WASI_SIMD(wasi_mask_numbers)(float *dx, const float *dy, const uint8_t *mask, wasi_int n)
{
    wasi_int e = 0;
#ifdef WASI_ISA_AVX512
    for (; e + 16 <= n; e += 16) {
        uint16_t bits;
        memcpy(&bits, mask + e / 8, sizeof bits);
        _mm512_storeu_ps(dx + e, _mm512_maskz_loadu_ps(bits, dy + e));
    }
#endif
    for (; e < n; e += 8) {
        unsigned bits = mask[e / 8];
        for (wasi_int i = e; i < WASI_MIN(e + 8, n); i++)
            dx[i] = bits >> (i - e) & 1 ? dy[i] : 0.0f;
    }
}
