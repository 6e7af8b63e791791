/* exp(x) for the loops of *_simd.c: plain arithmetic without branches or calls, so that it vectorises.
 *
 * exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2, exp(r) by a polynomial (the coefficients of Cephes' expf).
 * Relative error below 1e-7. Results below the smallest normal number are 0, x > 88.376
 * gives Inf, NaN gives NaN. */
#ifndef WASI_COMMON_EXP_H
#define WASI_COMMON_EXP_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float wasi_exp(float x)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, left in the low bits */
    float shifted = x * 1.44269504f + shift;
    float n = shifted - shift;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts: n times the first is exact */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u; /* 2^n */
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.33654f ? 0.0f : x > 88.37626f ? INFINITY : p * power;
}

#endif
