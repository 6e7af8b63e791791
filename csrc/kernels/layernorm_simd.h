/* The rows of layernorm.c, on one thread. */
#ifndef WASI_KERNELS_LAYERNORM_SIMD_H
#define WASI_KERNELS_LAYERNORM_SIMD_H

#include "common/isa.h"
#include "common/status.h"

/* s = x + r where r is given; else s is not touched. y = LN of the sum (of x), with its mean and rstd. */
WASI_SIMD_DECLARE(void, wasi_layer_norm_rows, (float *s, float *y, float *mean, float *rstd, const float *x,
                                               const float *r, const float *w, const float *b, float eps, wasi_int M,
                                               wasi_int C));
WASI_SIMD_DECLARE(void, wasi_layer_norm_apply_rows, (float *y, const float *x, const float *mean, const float *rstd,
                                                     const float *w, const float *b, wasi_int M, wasi_int C));
/* dx, and the sums over these rows added to dw and db where they are given. */
WASI_SIMD_DECLARE(void, wasi_layer_norm_backward_rows, (float *dx, float *dw, float *db, const float *dy,
                                                        const float *x, const float *mean, const float *rstd,
                                                        const float *w, const float *add_to, wasi_int M, wasi_int C));

#endif
