#include "kernels/rope_simd.h"

void WASI_SIMD(wasi_rope_token)(float *x, const float *cosines, const float *sines, float turn, wasi_int H,
                                wasi_int half)
{
    for (wasi_int h = 0; h < H; h++, x += 2 * half) {
#pragma omp simd
        for (wasi_int d = 0; d < half; d++) {
            float a = x[d], b = x[half + d], c = cosines[d], s = turn * sines[d];
            x[d] = a * c - b * s;
            x[half + d] = b * c + a * s;
        }
    }
}
