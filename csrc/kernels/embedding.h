/* Rows of a table by token id, y[m] = T[t[m]], and the gradient dT[t[m]] += dy[m].
 *
 * Row-major float32: T, dT V x C; y, dy M x C; t M ids, int64. Ids outside 0..V-1 are found before anything is
 * written: WASI_ERR_RANGE. The gradient's work is cut along C, each thread walking all rows in order, so a token that
 * comes twice needs no lock and the bits do not depend on the thread count. */
#ifndef WASI_KERNELS_EMBEDDING_H
#define WASI_KERNELS_EMBEDDING_H

#include "common/status.h"

wasi_status wasi_embedding_forward(float *y, const int64_t *t, const float *T, wasi_int M, wasi_int V, wasi_int C,
                                   int n_threads);
wasi_status wasi_embedding_backward(float *dT, const float *dy, const int64_t *t, wasi_int M, wasi_int V, wasi_int C,
                                    int n_threads);

#endif
