#include "kernels/pool_simd.h"

#include <string.h>

void WASI_SIMD(wasi_max_pool_lines)(float *y, uint8_t *tap, const float *x, const wasi_conv *conv, wasi_int begin,
                                    wasi_int end)
{
    const wasi_int C = conv->C, k = conv->k;
    for (wasi_int line = begin; line < end; line++) {
        const float *image = x + line / conv->Ho * conv->H * conv->W * C;
        wasi_int top = line % conv->Ho * conv->s - conv->pad;
        for (wasi_int j = 0; j < conv->Wo; j++) {
            wasi_int left = j * conv->s - conv->pad;
            float *restrict best = y + (line * conv->Wo + j) * C;
            uint8_t *restrict which = tap + (line * conv->Wo + j) * C;
            int first = 1;
            for (wasi_int u = WASI_MAX(0, -top); u < WASI_MIN(k, conv->H - top); u++)
                for (wasi_int v = WASI_MAX(0, -left); v < WASI_MIN(k, conv->W - left); v++) {
                    const float *pixel = image + ((top + u) * conv->W + left + v) * C;
                    uint8_t number = (uint8_t)(u * k + v);
                    if (first) {
                        memcpy(best, pixel, (size_t)C * sizeof *best);
                        memset(which, number, (size_t)C);
                        first = 0;
                        continue;
                    }
#pragma omp simd
                    for (wasi_int c = 0; c < C; c++) {
                        int larger = !(pixel[c] <= best[c]) && best[c] == best[c];
                        best[c] = larger ? pixel[c] : best[c];
                        which[c] = larger ? number : which[c];
                    }
                }
        }
    }
}

void WASI_SIMD(wasi_max_pool_backward_lines)(float *dx, const float *dy, const uint8_t *tap, const wasi_conv *conv,
                                             wasi_int begin, wasi_int end)
{
    const wasi_int C = conv->C, k = conv->k, s = conv->s;
    memset(dx + begin * conv->W * C, 0, (size_t)((end - begin) * conv->W * C) * sizeof *dx);
    for (wasi_int line = begin; line < end; line++) {
        wasi_int b = line / conv->H, h = line % conv->H + conv->pad;
        for (wasi_int i = WASI_MAX(0, (h - k + s) / s); i < WASI_MIN(conv->Ho, h / s + 1); i++) {
            wasi_int u = h - i * s;
            if (u >= k)
                continue;
            for (wasi_int j = 0; j < conv->Wo; j++) {
                wasi_int left = j * s - conv->pad, at = ((b * conv->Ho + i) * conv->Wo + j) * C;
                for (wasi_int v = WASI_MAX(0, -left); v < WASI_MIN(k, conv->W - left); v++) {
                    float *restrict to = dx + (line * conv->W + left + v) * C;
                    uint8_t number = (uint8_t)(u * k + v);
#pragma omp simd
                    for (wasi_int c = 0; c < C; c++)
                        to[c] += tap[at + c] == number ? dy[at + c] : 0.0f;
                }
            }
        }
    }
}
