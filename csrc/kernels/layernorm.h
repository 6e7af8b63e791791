/* Layer normalisation of M rows of C, alone or after a residual sum.
 *
 *     xhat = (x - mean(x)) rstd,  rstd = 1 / sqrt(var(x) + eps),  y = xhat w + b      (var: the mean square deviation)
 *
 * Row-major float32: x, y M x C; mean, rstd M, saved for backward; w, b C. With g = dy w, row by row,
 *
 *     dx = rstd (g - mean(g) - xhat mean(g xhat)),  dw = sum over rows of dy xhat,  db = sum over rows of dy.
 *
 * The variance is taken in a second pass over the row, which is in cache by then: one pass loses it to cancellation
 * when the mean is large. A result may be the very memory of an input of its shape. */
#ifndef WASI_KERNELS_LAYERNORM_H
#define WASI_KERNELS_LAYERNORM_H

#include "common/status.h"

/* y = LN(x); or, where r (M x C) and s are given, s = x + r and y = LN(s) in one pass over memory, with mean and rstd
 * those of s, which must not be y. Without r, s is not used. */
wasi_status wasi_layer_norm_forward(float *s, float *y, float *mean, float *rstd, const float *x, const float *r,
                                    const float *w, const float *b, float eps, wasi_int M, wasi_int C, int n_threads);

/* y again, with the bits that the forward pass gave it. */
wasi_status wasi_layer_norm_apply(float *y, const float *x, const float *mean, const float *rstd, const float *w,
                                  const float *b, wasi_int M, wasi_int C, int n_threads);

/* dx as above, plus add_to (the gradient that reaches x past the norm) unless that is NULL; dw and db add, each may
 * be NULL. `work` has wasi_layer_norm_backward_work(C, n_threads) bytes. */
wasi_status wasi_layer_norm_backward(float *dx, float *dw, float *db, const float *dy, const float *x,
                                     const float *mean, const float *rstd, const float *w, const float *add_to,
                                     wasi_int M, wasi_int C, void *work, int n_threads);
size_t wasi_layer_norm_backward_work(wasi_int C, int n_threads);

#endif
