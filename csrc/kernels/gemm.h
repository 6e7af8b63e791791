/* Matrix products split over wasi's threads.
 *
 * C (m x n) = alpha op(A) op(B) + beta C, row-major, as in common/blas.h. The larger side of C is cut
 * into one range a thread; each thread runs one single-threaded BLAS call on its own block of C. */
#ifndef WASI_KERNELS_GEMM_H
#define WASI_KERNELS_GEMM_H

#include "common/blas.h"

wasi_status wasi_sgemm(bool ta, bool tb, wasi_int m, wasi_int n, wasi_int k, float alpha, const float *A, wasi_int lda,
                       const float *B, wasi_int ldb, float beta, float *C, wasi_int ldc, int n_threads);
wasi_status wasi_dgemm(bool ta, bool tb, wasi_int m, wasi_int n, wasi_int k, double alpha, const double *A,
                       wasi_int lda, const double *B, wasi_int ldb, double beta, double *C, wasi_int ldc, int n_threads);

#endif
