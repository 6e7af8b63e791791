/* Convolution of images that lie channels last, as a linear map of their patches.
 *
 *     p[b, i, j] = x[b, i s - pad + u, j s - pad + v, c],  u, v < k: a row of k k C numbers in the order (u, v, c), 0 outside x
 *     y = p W' + bias,      W: O x k k C
 *
 * Row-major float32: x B x H x W x C, y B x Ho x Wo x O, Ho = (H + 2 pad - k) / s + 1. Channels last, a patch is k runs of
 * k C neighbouring numbers. The matrix of all patches, k k / s s times as large as x, never exists: patches are gathered
 * for some lines of y at a time, a tile that a GEMM then finds in cache, and in the backward pass
 *
 *     dW += sum over tiles of dy' p,      dx = the rows of dy W, tile by tile, added back to where the patches came from.
 *
 * A factored convolution, W = L R, is one by R into K channels and a linear map by L. One with k = s = 1 is a linear map.
 * Threads share y's lines, W's columns in dW, and images in dx. Parameter gradients add, dx overwrites.
 * With `bfloat16` the products round their factors (bgemm.h) where that pays. */
#ifndef WASI_KERNELS_CONV_H
#define WASI_KERNELS_CONV_H

#include <stdbool.h>

#include "common/status.h"

typedef struct {
    wasi_int B, H, W, C;
    wasi_int k, s, pad; /* kernel and stride, at least 1; pad < k */
    wasi_int Ho, Wo;    /* at least 1 where B, H, W are */
} wasi_conv;

/* b (O) may be NULL. `work`: wasi_conv_work() bytes. */
wasi_status wasi_conv_forward(float *y, const float *x, const float *W, const float *b, const wasi_conv *conv, wasi_int O,
                              bool bfloat16, void *work, int n_threads);
/* Each of dx, dW, db may be NULL (not wanted); x may be NULL where dW is. */
wasi_status wasi_conv_backward(float *dx, float *dW, float *db, const float *dy, const float *x, const float *W,
                               const wasi_conv *conv, wasi_int O, bool bfloat16, void *work, int n_threads);
/* Enough for either direction. */
size_t wasi_conv_work(const wasi_conv *conv, bool bfloat16, int n_threads);

/* All patches: p (B x Ho x Wo x k k C); and their transpose, which adds up in dx what each number of x gave to patches. */
wasi_status wasi_conv_unfold(float *p, const float *x, const wasi_conv *conv, int n_threads);
wasi_status wasi_conv_fold(float *dx, const float *dp, const wasi_conv *conv, int n_threads);

#endif
