/* The loops of cross_entropy.c over one row of V. */
#ifndef WASI_KERNELS_CROSS_ENTROPY_SIMD_H
#define WASI_KERNELS_CROSS_ENTROPY_SIMD_H

#include "common/isa.h"
#include "common/status.h"

/* The largest number that is not NaN, or -Inf. */
WASI_SIMD_DECLARE(float, wasi_row_max, (const float *z, wasi_int V));
/* a_j = w_j (keep p_j + spread); p and w may be NULL: [p_j absent] spread, w_j = 1. */
WASI_SIMD_DECLARE(void, wasi_row_targets, (float *a, const float *p, const float *w, float keep, float spread,
                                           wasi_int V));
/* total = sum of a_j, dot = sum of a_j (z_j - top), without the terms whose a_j is 0. */
WASI_SIMD_DECLARE(void, wasi_row_dot, (double *total, double *dot, const float *a, const float *z, float top,
                                       wasi_int V));
/* The sum of exp(z_j - top); keeps the terms in e, which may be z, or NULL. */
WASI_SIMD_DECLARE(double, wasi_row_exp, (float *e, const float *z, float top, wasi_int V));
/* d_j = scale d_j - share a_j; a may be NULL: 0. */
WASI_SIMD_DECLARE(void, wasi_row_gradient, (float *d, const float *a, float scale, float share, wasi_int V));

#endif
