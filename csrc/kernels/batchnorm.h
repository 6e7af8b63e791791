/* Batch normalisation of M rows of C channels, with what follows it in a residual network in the same pass.
 *
 *     y = relu((x - mean) rstd w + b + r),      r (M x C) and relu each where wanted
 *
 * Row-major float32: x, y M x C; mean, rstd, w, b C. mean and rstd = 1 / sqrt(var + eps) are those of the batch (training) or
 * running ones (evaluation): the caller chooses. Backward, with g the gradient where the relu let through,
 *
 *     db = sum of g,  dw = sum of g xhat,  xhat = (x - mean) rstd,
 *     dx = w rstd g                                            where mean and rstd were given numbers,
 *     dx = w rstd (g - mean(g) - xhat mean(g xhat))            where they were those of x.
 *
 * A relu straight after the norm needs no memory: its sign is computed again from x. One after a sum with r keeps a bit a
 * number, in `mask`: bit e % 8 of byte e / 8 says whether number e of y is above 0.
 *
 * Sums over rows are taken in blocks that stay in cache, in float32, and over blocks in float64, so neither a large mean
 * nor millions of rows cost digits. They depend on the number of threads, and on nothing else. */
#ifndef WASI_KERNELS_BATCHNORM_H
#define WASI_KERNELS_BATCHNORM_H

#include <stdbool.h>

#include "common/status.h"

/* Mean and variance (mean square deviation) of each channel; M at least 1. `work`: wasi_batch_norm_work() bytes. */
wasi_status wasi_batch_norm_statistics(float *mean, float *var, const float *x, wasi_int M, wasi_int C, void *work,
                                       int n_threads);

/* r and mask (M C / 8 bytes, rounded up) may be NULL; y may be the very memory of x or r. */
wasi_status wasi_batch_norm_forward(float *y, uint8_t *mask, const float *x, const float *r, const float *mean,
                                    const float *rstd, const float *w, const float *b, bool relu, wasi_int M, wasi_int C,
                                    int n_threads);

/* relu: one straight after the norm. of_batch: mean and rstd are those of x. dw and db add, each may be NULL. dx may be the
 * very memory of dy or x. `work`: wasi_batch_norm_work() bytes. */
wasi_status wasi_batch_norm_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *mean,
                                     const float *rstd, const float *w, const float *b, bool relu, bool of_batch, wasi_int M,
                                     wasi_int C, void *work, int n_threads);
size_t wasi_batch_norm_work(wasi_int C, int n_threads);

/* dx = dy where mask has a bit, else 0, for n numbers; in place if wanted. */
wasi_status wasi_mask_gradient(float *dx, const float *dy, const uint8_t *mask, wasi_int n, int n_threads);

#endif
