/* The standard normal distribution for the loops of *_simd.c: without branches or calls, as common/exp.h. */
#ifndef WASI_COMMON_NORMAL_H
#define WASI_COMMON_NORMAL_H

#include <math.h>

#include "common/exp.h"

typedef struct {
    float cdf, pdf;
} wasi_normal;

/* The distribution function and the density at x, to about 1e-7. With a = |x|, the upper tail is exp(-a^2 / 2) times a
 * smooth function of t = 1 / (1 + 0.304 a) that vanishes with t: a polynomial without constant term, fitted to a
 * relative error of 9e-8 (the form of Abramowitz and Stegun 7.1.26). NaN gives NaN. */
static inline wasi_normal wasi_normal_at(float x)
{
    float a = fabsf(x), e = wasi_exp(-0.5f * a * a), t = 1.0f / (1.0f + 0.304f * a);
    float q = 0.0368579175f;
    q = q * t - 0.155296644f;
    q = q * t + 0.192185227f;
    q = q * t - 0.0431269008f;
    q = q * t + 0.123552169f;
    q = q * t + 0.102422883f;
    q = q * t + 0.122170707f;
    q = q * t + 0.121234682f;
    float tail = e * t * q;
    return (wasi_normal){x < 0.0f ? tail : 1.0f - tail, e * 0.398942280f};
}

#endif
