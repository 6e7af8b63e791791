/* Linear layers on M = B N rows: dense, y = x W' + b, and factored, y = (x R') L' + b.
 *
 * Row-major float32: x M x I, y M x O, W O x I, L O x K, R K x I, b O. The factored layer never forms
 * an O x I array: its gradients are dR = (dy L)' x and dL = dy' (x R')  (paper, section 3.2).
 * Parameter gradients (dW, dL, dR, db) add to what they hold; activation gradients overwrite.
 *
 * work: wasi_bgemm_work() bytes, for products that round their factors to bfloat16 (bgemm.h), or NULL for products
 * in float32. */
#ifndef WASI_KERNELS_LINEAR_H
#define WASI_KERNELS_LINEAR_H

#include <stdbool.h>

#include "common/status.h"

/* C (m x n, ldc apart) (+)= op(A) op(B) + b, as sgemm has it; b (n) may be NULL, and wants ldc = n. */
wasi_status wasi_product(bool ta, bool tb, wasi_int m, wasi_int n, wasi_int k, const float *A, wasi_int lda,
                         const float *B, wasi_int ldb, const float *b, bool add, float *C, wasi_int ldc, void *work,
                         int n_threads);

/* y = x W' + b; b may be NULL. */
wasi_status wasi_linear_forward(float *y, const float *x, const float *W, const float *b, wasi_int M, wasi_int O,
                                wasi_int I, void *work, int n_threads);

/* dx = dy W, dW += dy' x, db += column sums of dy; each of dx, dW, db may be NULL (not wanted);
 * x may be NULL where dW is. */
wasi_status wasi_linear_backward(float *dx, float *dW, float *db, const float *dy, const float *x, const float *W,
                                 wasi_int M, wasi_int O, wasi_int I, void *work, int n_threads);

/* z = x R' (M x K), y = z L' + b; b may be NULL. */
wasi_status wasi_factored_forward(float *y, float *z, const float *x, const float *L, const float *R, const float *b,
                                  wasi_int M, wasi_int O, wasi_int I, wasi_int K, void *work, int n_threads);

/* gl = dy L (M x K, overwritten), dx = gl R, dR += gl' x, dL += dy' z, db += column sums of dy.
 * dx, dL, dR, db may be NULL; x may be NULL where dR is, z where dL is. */
wasi_status wasi_factored_backward(float *dx, float *gl, float *dL, float *dR, float *db, const float *dy,
                                   const float *x, const float *z, const float *L, const float *R, wasi_int M,
                                   wasi_int O, wasi_int I, wasi_int K, void *work, int n_threads);

#endif
