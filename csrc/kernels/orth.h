/* Orthonormal bases of tall blocks (columns) and of wide blocks (rows).
 *
 * CholeskyQR: with the Gram matrix G = A' A = T' T, Q = A T^-1. Two GEMM-like passes over A, where Householder needs
 * many thin ones, but its error grows with cond(A)^2. So G and the division by T are computed in float64 also for
 * float32 arrays, G is scaled to a unit diagonal first (badly scaled columns then cost nothing), and LAPACK's estimate
 * of cond(G) decides: one pass, a second pass on the result (CholeskyQR2), or, beyond cond(A) of about 3e6 (float32) or
 * 1e5 (float64), Householder, which yields an orthonormal Q from anything.
 *
 * T is upper triangular with a positive diagonal, float64, K x K. */
#ifndef WASI_KERNELS_ORTH_H
#define WASI_KERNELS_ORTH_H

#include <stdbool.h>

#include "common/status.h"

/* Q (m x k, m >= k) = an orthonormal basis whose span contains the columns of A (m x k); Q may be A. `rank` (may be
 * NULL) receives the numerical rank of A with its columns scaled to unit norm; directions below it by 1e-6 (float32)
 * or 1e-14 (float64) do not count. k >= 1. A = Q T for an upper triangular T.
 * WASI_ERR_NONFINITE leaves Q as it was. */
wasi_status wasi_sorth(float *Q, wasi_int *rank, const float *A, wasi_int m, wasi_int k, void *scratch, int n_threads);
wasi_status wasi_dorth(double *Q, wasi_int *rank, const double *A, wasi_int m, wasi_int k, void *scratch,
                       int n_threads);
/* The same, with A = Q T: T and, where `regular` becomes true, Tinv = T^-1; each may be NULL. T's diagonal is not
 * negative, so Q's signs are A's. */
wasi_status wasi_sorth_factor(float *Q, double *T, double *Tinv, bool *regular, wasi_int *rank, const float *A,
                              wasi_int m, wasi_int k, void *scratch, int n_threads);
wasi_status wasi_dorth_factor(double *Q, double *T, double *Tinv, bool *regular, wasi_int *rank, const double *A,
                              wasi_int m, wasi_int k, void *scratch, int n_threads);
size_t wasi_sorth_work(wasi_int m, wasi_int k, int n_threads); /* serves both */
size_t wasi_dorth_work(wasi_int m, wasi_int k, int n_threads);

/* Rows: A A' = T' T for a wide A (k x n), accurate to cond(A) and not cond(A)^2; an orthonormal basis of A's rows is
 * then T^-1' A (wasi_?divide). tmp (k x n) is overwritten where a second pass is wanted.
 * WASI_ERR_RANK where cond(A), its rows scaled to unit norm, exceeds about 3e6, or WASI_ERR_NONFINITE. */
wasi_status wasi_srow_factor(double *T, double *Tinv, const float *A, float *tmp, wasi_int k, wasi_int n, void *scratch,
                             int n_threads);
wasi_status wasi_drow_factor(double *T, double *Tinv, const double *A, double *tmp, wasi_int k, wasi_int n,
                             void *scratch, int n_threads);
size_t wasi_srow_factor_work(wasi_int k, wasi_int n, int n_threads);
size_t wasi_drow_factor_work(wasi_int k, wasi_int n, int n_threads);

/* The two passes. G (k x k, both triangles) = A' A for a tall A (m x k), or A A' for a wide one (k x m), summed in
 * float64; B = A T^-1 (tall) or T^-1' A (wide) with Tinv given, B may be A. */
wasi_status wasi_sgram(double *G, const float *A, bool wide, wasi_int m, wasi_int k, void *scratch, int n_threads);
wasi_status wasi_dgram(double *G, const double *A, bool wide, wasi_int m, wasi_int k, void *scratch, int n_threads);
wasi_status wasi_sdivide(float *B, const float *A, const double *Tinv, bool wide, wasi_int m, wasi_int k, void *scratch,
                         int n_threads);
wasi_status wasi_ddivide(double *B, const double *A, const double *Tinv, bool wide, wasi_int m, wasi_int k,
                         void *scratch, int n_threads);
size_t wasi_sgram_work(wasi_int m, wasi_int k, int n_threads); /* serves both */
size_t wasi_dgram_work(wasi_int m, wasi_int k, int n_threads);

/* T, Tinv with G = T' T (each k x k, lower triangles zero) and rcond = 1 / cond(G scaled to a unit diagonal), or a
 * lower bound of it where that is above 1e-7; rcond = 0 where G is not positive definite. WASI_ERR_NONFINITE where the
 * diagonal holds NaN or Inf. */
wasi_status wasi_gram_factor(double *T, double *Tinv, double *rcond, const double *G, wasi_int k, void *scratch);
size_t wasi_gram_factor_work(wasi_int k);

#endif
