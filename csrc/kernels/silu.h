/* SiLU, exact: g = h s with s = 1 / (1 + exp(-h)); dh = dy s (1 + h (1 - s)).
 * SwiGLU's gate (arXiv 2002.05202) in one pass: g = silu(a) b; da = dy b silu'(a), db = dy silu(a). */
#ifndef WASI_KERNELS_SILU_H
#define WASI_KERNELS_SILU_H

#include "common/status.h"

wasi_status wasi_silu_forward(float *g, const float *h, wasi_int n, int n_threads); /* g may be h */
wasi_status wasi_silu_backward(float *dh, const float *dy, const float *h, wasi_int n,
                               int n_threads); /* dh may be dy or h */

/* g may be a or b; da and db may each be dy, a or b, but not the same one. */
wasi_status wasi_swiglu_forward(float *g, const float *a, const float *b, wasi_int n, int n_threads);
wasi_status wasi_swiglu_backward(float *da, float *db, const float *dy, const float *a, const float *b, wasi_int n,
                                 int n_threads);

#endif
