/* Root-mean-square normalisation of M rows of C (Zhang and Sennrich, arXiv 1910.07467).
 *
 *     y = x rstd w,  rstd = 1 / sqrt(mean(x^2) + eps)
 *
 * Row-major float32: x, y M x C; rstd M, saved for backward; w C. With g = dy w, row by row,
 *
 *     dx = rstd (g - x rstd^2 mean(g x)),  dw = sum over rows of dy x rstd.
 *
 * A result may be the very memory of an input of its shape. */
#ifndef WASI_KERNELS_RMSNORM_H
#define WASI_KERNELS_RMSNORM_H

#include "common/status.h"

wasi_status wasi_rms_norm_forward(float *y, float *rstd, const float *x, const float *w, float eps, wasi_int M,
                                  wasi_int C, int n_threads);

/* y again, with the bits that the forward pass gave it. */
wasi_status wasi_rms_norm_apply(float *y, const float *x, const float *rstd, const float *w, wasi_int M, wasi_int C,
                                int n_threads);

/* dx as above, plus add_to (the gradient that reaches x past the norm) unless that is NULL; dw adds, and may be NULL.
 * `work` has wasi_rms_norm_backward_work(C, n_threads) bytes. */
wasi_status wasi_rms_norm_backward(float *dx, float *dw, const float *dy, const float *x, const float *rstd,
                                   const float *w, const float *add_to, wasi_int M, wasi_int C, void *work,
                                   int n_threads);
size_t wasi_rms_norm_backward_work(wasi_int C, int n_threads);

#endif
