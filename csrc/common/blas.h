/* The one door to BLAS and LAPACK.
 *
 * Matrices are row-major; `ld` is the distance between rows. A row-major problem is handed on as
 * the column-major problem of its transpose, so nothing is copied or allocated behind our back.
 * Every call runs on the calling thread alone: wasi's own threads (parallel.h) split the work.
 * Sizes are narrowed to the BLAS integer here and nowhere else (WASI_ERR_OVERFLOW). */
#ifndef WASI_COMMON_BLAS_H
#define WASI_COMMON_BLAS_H

#include <stdbool.h>

#include "common/status.h"

/* Makes the BLAS library single-threaded; called once, when the module is loaded. */
void wasi_blas_init(void);
/* Name and version of the library, for benchmark tables. */
const char *wasi_blas_config(void);

/* C (m x n) = alpha op(A) op(B) + beta C, op(A) m x k, op(B) k x n; ta / tb: the operand is transposed. */
wasi_status wasi_sgemm1(bool ta, bool tb, wasi_int m, wasi_int n, wasi_int k, float alpha, const float *A, wasi_int lda,
                        const float *B, wasi_int ldb, float beta, float *C, wasi_int ldc);
wasi_status wasi_dgemm1(bool ta, bool tb, wasi_int m, wasi_int n, wasi_int k, double alpha, const double *A,
                        wasi_int lda, const double *B, wasi_int ldb, double beta, double *C, wasi_int ldc);

#endif
