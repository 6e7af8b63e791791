/* The largest number of each window, channel by channel, of images that lie channels last.
 *
 *     y[b, i, j, c] = max over u, v < k of x[b, i s - pad + u, j s - pad + v, c], outside x not counted
 *
 * tap (uint8, as y) says which: u k + v of the first one that is as large; a NaN counts as larger than all before it. The
 * gradient goes back there alone. Windows are those of conv.h, k at most WASI_POOL_MAX_KERNEL. Threads share lines of the
 * result. */
#ifndef WASI_KERNELS_POOL_H
#define WASI_KERNELS_POOL_H

#include "kernels/conv.h"

enum { WASI_POOL_MAX_KERNEL = 15 };

wasi_status wasi_max_pool_forward(float *y, uint8_t *tap, const float *x, const wasi_conv *conv, int n_threads);
/* dx is overwritten. */
wasi_status wasi_max_pool_backward(float *dx, const float *dy, const uint8_t *tap, const wasi_conv *conv, int n_threads);

#endif
