/* The one door to BLAS and LAPACK.
 *
 * Matrices are row-major; `ld` is the distance between rows. A row-major problem is handed on as
 * the column-major problem of its transpose, so nothing is copied or allocated behind our back.
 * Every call runs on the calling thread alone: wasi's own threads (parallel.h) split the work.
 * Sizes are narrowed to the BLAS integer here and nowhere else (WASI_ERR_OVERFLOW).
 *
 * "s" is float32, "d" float64. Triangles are upper, T' T is a Cholesky factorisation, and only the upper
 * triangle of a symmetric matrix is read or written, unless a line says otherwise.
 * LAPACK reads NaN and Inf with undefined results (gesdd may not return): callers scan first. */
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

/* C (n x n, upper) = alpha A' A + beta C with A k x n if `trans`, else alpha A A' + beta C with A n x k. */
wasi_status wasi_ssyrk1(bool trans, wasi_int n, wasi_int k, float alpha, const float *A, wasi_int lda, float beta,
                        float *C, wasi_int ldc);
wasi_status wasi_dsyrk1(bool trans, wasi_int n, wasi_int k, double alpha, const double *A, wasi_int lda, double beta,
                        double *C, wasi_int ldc);

/* B (m x n) = op(T) B if `left`, else B op(T); op is the transpose where `trans`. */
wasi_status wasi_strmm1(bool left, bool trans, wasi_int m, wasi_int n, const float *T, wasi_int ldt, float *B,
                        wasi_int ldb);
wasi_status wasi_dtrmm1(bool left, bool trans, wasi_int m, wasi_int n, const double *T, wasi_int ldt, double *B,
                        wasi_int ldb);

/* A = T' T in place; WASI_ERR_RANK where A is not positive definite. */
wasi_status wasi_dpotrf(wasi_int n, double *A, wasi_int lda);
/* Estimate of 1 / (|A|_1 |A^-1|_1) from A's Cholesky factor and |A|_1; work 3 n, iwork n. */
wasi_status wasi_dpocon(wasi_int n, const double *T, wasi_int ldt, double norm, double *rcond, double *work,
                        int32_t *iwork);
/* T = T^-1 in place; WASI_ERR_RANK where T is singular. */
wasi_status wasi_dtrtri(wasi_int n, double *T, wasi_int ldt);

/* Householder A = Q R, A m x k with m >= k: R overwrites A's upper triangle, the reflectors the rest. tau holds k;
 * work holds wasi_?qr_lwork(m, k) numbers, which serves both functions. */
wasi_status wasi_sqr(wasi_int m, wasi_int k, float *A, wasi_int lda, float *tau, float *work, wasi_int lwork);
wasi_status wasi_dqr(wasi_int m, wasi_int k, double *A, wasi_int lda, double *tau, double *work, wasi_int lwork);
/* Q (m x k) in place of the reflectors. */
wasi_status wasi_sqr_q(wasi_int m, wasi_int k, float *A, wasi_int lda, const float *tau, float *work, wasi_int lwork);
wasi_status wasi_dqr_q(wasi_int m, wasi_int k, double *A, wasi_int lda, const double *tau, double *work,
                       wasi_int lwork);
wasi_int wasi_sqr_lwork(wasi_int m, wasi_int k);
wasi_int wasi_dqr_lwork(wasi_int m, wasi_int k);

/* R of a QR factorisation of A (n x n) with column pivoting, for its diagonal, which falls and reveals A's rank: its
 * absolute values are those on the diagonal of A afterwards. pivot and tau hold n. */
wasi_status wasi_dpivoted_qr(wasi_int n, double *A, int32_t *pivot, double *tau, double *work, wasi_int lwork);
wasi_int wasi_dpivoted_qr_lwork(wasi_int n);

/* A (m x n) = U S Vt by divide and conquer, r = min(m, n). The larger factor overwrites A: where m > n, A becomes
 * U (m x n) and `other` receives Vt (n x n), else A becomes Vt (m x n) and `other` U (m x m). S descends.
 * work holds wasi_?svd_lwork(m, n) numbers, iwork 8 r. WASI_ERR_LAPACK where it does not converge. */
wasi_status wasi_ssvd(wasi_int m, wasi_int n, float *A, float *S, float *other, float *work, wasi_int lwork,
                      int32_t *iwork);
wasi_status wasi_dsvd(wasi_int m, wasi_int n, double *A, double *S, double *other, double *work, wasi_int lwork,
                      int32_t *iwork);
wasi_int wasi_ssvd_lwork(wasi_int m, wasi_int n);
wasi_int wasi_dsvd_lwork(wasi_int m, wasi_int n);
/* The same by QR iterations, slower, for what the above cannot do; same sizes. */
wasi_status wasi_ssvd_safe(wasi_int m, wasi_int n, float *A, float *S, float *other, float *work, wasi_int lwork);
wasi_status wasi_dsvd_safe(wasi_int m, wasi_int n, double *A, double *S, double *other, double *work, wasi_int lwork);

/* Symmetric A (n x n) = Z' diag(w) Z: w ascends, row i of Z overwrites row i of A and belongs to w[i].
 * liwork is 3 + 5 n. */
wasi_status wasi_deigh(wasi_int n, double *A, double *w, double *work, wasi_int lwork, int32_t *iwork);
wasi_int wasi_deigh_lwork(wasi_int n);
/* The eigenvalues alone, ascending; A is destroyed. work holds 2 n + 1. */
wasi_status wasi_deigvals(wasi_int n, double *A, double *w, double *work);

#endif
