/* SiLU, exact: g = h s with s = 1 / (1 + exp(-h)); dh = dy s (1 + h (1 - s)). */
#ifndef WASI_KERNELS_SILU_H
#define WASI_KERNELS_SILU_H

#include "common/status.h"

wasi_status wasi_silu_forward(float *g, const float *h, wasi_int n, int n_threads); /* g may be h */
wasi_status wasi_silu_backward(float *dh, const float *dy, const float *h, wasi_int n,
                               int n_threads); /* dh may be dy or h */

#endif
