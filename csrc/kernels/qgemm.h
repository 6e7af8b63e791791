/* Products with a frozen quantised matrix Q (quantize.h) in integers: y = x Q' and dx = dy Q.
 *
 *     y[m, o] = r[o] t[m] sum over i of (u[m, i] - z[m]) q[o, i],      u = round(x c / t) + z,  one t and z a token
 *     dx[m, i] = c[i] t[m] sum over o of (u[m, o] - z[m]) q[o, i],     u = round(dy r / t) + z
 *
 * The activations of a token are rounded to 0..255 between their least and largest value (0 included, and exact), which
 * serves skewed ones (after GELU) as well as symmetric ones. The sums are exact int32 whatever the instruction set:
 * sum of u q, less z times the sum of q. A token with NaN, Inf or a range beyond float32 gives a row of NaN.
 *
 * Tokens are taken in chunks, quantised into tiles of 12 that stay in cache; each thread expands its own columns of the
 * result, 32 at a time, to an integer panel, which all tiles of the chunk go by. So the scratch is bounded, and the
 * expansion costs little a token. With `exact` the activations stay float32: the panel is float32, 64 columns wide, and
 * BLAS multiplies. That is slower, and what the integer path is measured against.
 *
 * Row-major float32: x, dx M x I; y, dy M x O; b O. Results overwrite, or add to what is there with `add`. They must not
 * share memory with an input. `work` has wasi_qgemm_work() bytes for the same sizes. */
#ifndef WASI_KERNELS_QGEMM_H
#define WASI_KERNELS_QGEMM_H

#include <stdbool.h>

#include "kernels/quantize.h"

/* y (+)= x Q' + b; b may be NULL. */
wasi_status wasi_qgemm_forward(float *y, const float *x, const wasi_quant *Q, const float *b, bool add, bool exact,
                               wasi_int M, void *work, int n_threads);
/* dx (+)= dy Q. */
wasi_status wasi_qgemm_backward(float *dx, const float *dy, const wasi_quant *Q, bool add, bool exact, wasi_int M,
                                void *work, int n_threads);
/* Enough for either direction. */
size_t wasi_qgemm_work(wasi_int M, wasi_int O, wasi_int I, bool exact, int n_threads);

#endif
