/* Truncated singular value decompositions, in two calls: the first leaves everything in its scratch block and tells
 * the spectrum, from which the caller chooses K; the second writes the K leading vectors.
 *
 * Exact: LAPACK's divide and conquer on a copy of A, whose larger factor overwrites the copy.
 *
 * Whitened: the rank-K product L R that minimises E |(W - L R) x|^2 over inputs with E[x' x] = C is L = the first K
 * left singular vectors of W C^(1/2) and R = L' W, which equals S_K V_K' C^(-1/2) wherever C is invertible, and needs
 * no inverse where it is not. The vectors come from the smaller of two symmetric problems in float64: W C W' (O x O),
 * or F' W' W F (I x I) with C = F F', F = Z' diag(w)^(1/2) from C's eigenvectors, then L = W F V S^-1. */
#ifndef WASI_KERNELS_SVD_H
#define WASI_KERNELS_SVD_H

#include "common/status.h"

/* The smallest k >= 1 with s_1^2 + ... + s_k^2 >= variance * (s_1^2 + ... + s_n^2), 0 <= variance <= 1, n >= 1. */
wasi_int wasi_srank_by_variance(const float *S, wasi_int n, double variance);
wasi_int wasi_drank_by_variance(const double *S, wasi_int n, double variance);

/* A (m x n) = U diag(S) Vt: S receives the r = min(m, n) singular values, descending.
 * WASI_ERR_NONFINITE (found before LAPACK sees A), WASI_ERR_LAPACK. */
wasi_status wasi_ssvd_exact(float *S, const float *A, wasi_int m, wasi_int n, void *scratch);
wasi_status wasi_dsvd_exact(double *S, const double *A, wasi_int m, wasi_int n, void *scratch);
/* U (m x K) and Vt (K x n), 0 <= K <= r, from the scratch block that svd_exact filled. */
void wasi_ssvd_exact_take(float *U, float *Vt, wasi_int m, wasi_int n, wasi_int K, const void *scratch);
void wasi_dsvd_exact_take(double *U, double *Vt, wasi_int m, wasi_int n, wasi_int K, const void *scratch);
size_t wasi_ssvd_exact_work(wasi_int m, wasi_int n);
size_t wasi_dsvd_exact_work(wasi_int m, wasi_int n);

/* The spectrum S (r = min(O, I) numbers) of W (C + ridge * (trace C / I) * identity)^(1/2), accurate to 1e-8 of S[0];
 * W is O x I, C symmetric positive semidefinite I x I in float64. WASI_ERR_NONFINITE, WASI_ERR_LAPACK. */
wasi_status wasi_swhiten(float *S, const float *W, const double *C, double ridge, wasi_int O, wasi_int I, void *scratch,
                         int n_threads);
wasi_status wasi_dwhiten(double *S, const double *W, const double *C, double ridge, wasi_int O, wasi_int I,
                         void *scratch, int n_threads);
/* L (O x K, orthonormal) and R = L' W (K x I) from the scratch block that whiten filled. */
wasi_status wasi_swhiten_take(float *L, float *R, const float *W, wasi_int O, wasi_int I, wasi_int K,
                              void *scratch, int n_threads);
wasi_status wasi_dwhiten_take(double *L, double *R, const double *W, wasi_int O, wasi_int I,
                              wasi_int K, void *scratch, int n_threads);
size_t wasi_swhiten_work(wasi_int O, wasi_int I, int n_threads);
size_t wasi_dwhiten_work(wasi_int O, wasi_int I, int n_threads);

#endif
