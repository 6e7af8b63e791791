#include "kernels/store_simd.h"

#include <math.h>

void WASI_SIMD(wasi_store_span)(uint8_t *codes, float *scale, float *offset, const float *x, wasi_int M, wasi_int C)
{
    for (wasi_int m = 0; m < M; m++, x += C, codes += C) {
        float least = INFINITY, largest = -INFINITY, zero = 0;
#pragma omp simd reduction(min : least) reduction(max : largest) reduction(+ : zero)
        for (wasi_int c = 0; c < C; c++) {
            least = x[c] < least ? x[c] : least;
            largest = x[c] > largest ? x[c] : largest;
            zero += 0 * x[c]; /* NaN where x[c] is NaN or Inf */
        }
        /* Halves here and below, since the range itself may overflow. */
        float step = (0.5f * largest - 0.5f * least) / 127.5f, inverse = step > 0 ? 2 / step : 0;
        scale[m] = step + zero;
        offset[m] = C > 0 ? least : 0;
        if (!(inverse < INFINITY)) /* a row whose range is denormal: all at its least value */
            scale[m] = inverse = 0;
        if (isnan(zero)) {
            scale[m] = zero;
            inverse = least = 0;
        }
#pragma omp simd
        for (wasi_int c = 0; c < C; c++) {
            float code = (0.5f * x[c] - 0.5f * least) * inverse + 0.5f;
            codes[c] = (uint8_t)(int32_t)(code < 255 ? code : 255);
        }
    }
}

void WASI_SIMD(wasi_restore_span)(float *x, const uint8_t *codes, const float *scale, const float *offset, wasi_int M,
                                  wasi_int C)
{
    for (wasi_int m = 0; m < M; m++, x += C, codes += C) {
        float step = 0.5f * scale[m], least = 0.5f * offset[m];
#pragma omp simd
        for (wasi_int c = 0; c < C; c++)
            x[c] = 2 * (least + step * (float)codes[c]);
    }
}
