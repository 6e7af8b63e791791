/* Randomised and warm-started truncated SVD, in pieces that a caller strings together (wasi/linalg/rsvd.py).
 *
 * B is A (m x n) where m >= n, else A': p x q with p >= q. A basis V (q x l) of the short side is iterated, V <- orth
 * of (a polynomial in B'B) V; W = B V. Products with B are scaled by `alpha`, a power of two near 1 / |A|, so that squares
 * stay in range; singular values are scaled back.
 *
 * - Plain subspace iteration raises B'B to a power. The accelerated form applies Chebyshev's polynomials instead, which
 *   stay below one on [0, a] and grow fastest beyond: as accurate with half the passes over A (as in Zhou and Saad's
 *   filtered iterations). a is 0.7 or, with `two`, 0.85 times the square of the Ritz value just after the wanted ones,
 *   itself a lower bound of the true one: where the cut goes through a plateau, its values must lie beyond a to grow.
 * - `two`: the last two blocks of the iteration together span the subspace that A is projected on, a step of block
 *   Lanczos: the error falls again, for one more product with a block but no further pass.
 * - Where l is not small beside q, B'B is formed once and iterated on (gram_range).
 * - Rayleigh and Ritz: the Gram matrix of W in float64 gives W's singular values as accurately as a float32 W has them.
 *   In float64 the small triangle of W's QR factorisation is decomposed instead.
 *
 * Sources: Halko, Martinsson, Tropp (2011); Musco and Musco (2015) for block Lanczos. */
#ifndef WASI_KERNELS_RSVD_H
#define WASI_KERNELS_RSVD_H

#include <stdbool.h>

#include "common/status.h"

/* |A|_F of n numbers at any scale; WASI_ERR_NONFINITE. */
wasi_status wasi_snorm(double *norm, const float *A, wasi_int n, int n_threads);
wasi_status wasi_dnorm(double *norm, const double *A, wasi_int n, int n_threads);

typedef struct {
    wasi_int l, K;     /* columns of the blocks, and how many are wanted, K <= l <= q */
    int n_iter;        /* iterations, each two passes over A */
    bool accelerate;   /* Chebyshev polynomials */
    bool two;          /* leave the complement of the last block in X; needs n_iter >= 1 and 2 l <= q */
    bool orthogonalize; /* between iterations */
    bool cold;          /* V is filled with random numbers first; one iteration more where singular values fall slowly */
    double alpha;
    uint64_t seed; /* for what is missing in a deficient block */
} wasi_range_options;

/* Iterates. In: V (q x l) orthonormal, or anything where `cold`. Out: V, W = alpha B V (p x l) and, with `two`, X (q x l),
 * orthonormal and orthogonal to V. Else X is workspace, which n_iter = 0 does without (NULL); so is `previous` (q x l), of
 * `accelerate` alone. WASI_ERR_NONFINITE, WASI_ERR_LAPACK. */
wasi_status wasi_srange(float *V, float *X, float *previous, float *W, const float *A, wasi_int m, wasi_int n,
                        const wasi_range_options *options, void *scratch, int n_threads);
wasi_status wasi_drange(double *V, double *X, double *previous, double *W, const double *A, wasi_int m, wasi_int n,
                        const wasi_range_options *options, void *scratch, int n_threads);
size_t wasi_srange_work(wasi_int m, wasi_int n, wasi_int l, int n_threads);
size_t wasi_drange_work(wasi_int m, wasi_int n, wasi_int l, int n_threads);

/* The same accelerated iteration from random numbers of `seed`, on the Gram matrix alpha^2 B'B, which costs p q^2 FLOPs
 * once and 2 q^2 l an iteration: cheaper where l is not small beside q, and as accurate, since a product with B'B in
 * two steps rounds as much. V (q x l) receives the basis; W is left to wasi_?range with n_iter = 0. n_iter >= 1, `two`
 * is not for it. alpha within 2^-40..2^40 (float32), 2^-400..2^400 (float64): alpha^2 must be in range.
 * `useful` becomes false where Chebyshev's interval is negligible: V is of no use then. WASI_ERR_NONFINITE. */
wasi_status wasi_sgram_range(float *V, bool *useful, const float *A, wasi_int m, wasi_int n,
                             const wasi_range_options *options, void *scratch, int n_threads);
wasi_status wasi_dgram_range(double *V, bool *useful, const double *A, wasi_int m, wasi_int n,
                             const wasi_range_options *options, void *scratch, int n_threads);
size_t wasi_sgram_range_work(wasi_int m, wasi_int n, wasi_int l, int n_threads);
size_t wasi_dgram_range_work(wasi_int m, wasi_int n, wasi_int l, int n_threads);

/* V (q x l) = orth(alpha B' Y) for Y (p x l): random numbers of `seed`, written to Y, where `random`. */
wasi_status wasi_srange_start(float *V, float *Y, bool random, const float *A, wasi_int m, wasi_int n, wasi_int l,
                              double alpha, uint64_t seed, void *scratch, int n_threads);
wasi_status wasi_drange_start(double *V, double *Y, bool random, const double *A, wasi_int m, wasi_int n, wasi_int l,
                              double alpha, uint64_t seed, void *scratch, int n_threads);
size_t wasi_srange_start_work(wasi_int m, wasi_int n, wasi_int l, int n_threads);
size_t wasi_drange_start_work(wasi_int m, wasi_int n, wasi_int l, int n_threads);

/* X (q x b) <- an orthonormal block orthogonal to the `done` first columns of V (q x ldv); b <= q - done. */
wasi_status wasi_scomplement(float *X, const float *V, wasi_int ldv, wasi_int done, wasi_int q, wasi_int b,
                             uint64_t seed, void *scratch, int n_threads);
wasi_status wasi_dcomplement(double *X, const double *V, wasi_int ldv, wasi_int done, wasi_int q, wasi_int b,
                             uint64_t seed, void *scratch, int n_threads);
size_t wasi_scomplement_work(wasi_int done, wasi_int q, wasi_int b, int n_threads);
size_t wasi_dcomplement_work(wasi_int done, wasi_int q, wasi_int b, int n_threads);

/* The K leading singular triplets of A restricted to the span of V, or of V and X where X is not NULL.
 * In: V, X (q x l, only read), W = alpha B V (p x l). Out: S (K), scaled back; right (q x K, or its transpose K x q where
 * m >= n); the long vectors in the first p K numbers of W, as a p x K matrix. WASI_ERR_NONFINITE, WASI_ERR_LAPACK. */
wasi_status wasi_sritz(float *S, float *right, float *W, const float *V, const float *X, const float *A, wasi_int m,
                       wasi_int n, wasi_int l, wasi_int K, double alpha, void *scratch, int n_threads);
wasi_status wasi_dritz(double *S, double *right, double *W, const double *V, const double *X, const double *A, wasi_int m,
                       wasi_int n, wasi_int l, wasi_int K, double alpha, void *scratch, int n_threads);
size_t wasi_sritz_work(wasi_int m, wasi_int n, wasi_int l, wasi_int K, bool two, int n_threads);
size_t wasi_dritz_work(wasi_int m, wasi_int n, wasi_int l, wasi_int K, bool two, int n_threads);

/* The K leading right vectors (q x K) and singular values from the Gram matrix B'B in float64: exact to 1e-8 of the
 * first. For tall or wide arrays, where it costs less than iterating. */
wasi_status wasi_sgram_svd(float *S, float *V, const float *A, wasi_int m, wasi_int n, wasi_int K, void *scratch,
                           int n_threads);
wasi_status wasi_dgram_svd(double *S, double *V, const double *A, wasi_int m, wasi_int n, wasi_int K, void *scratch,
                           int n_threads);
size_t wasi_sgram_svd_work(wasi_int m, wasi_int n, int n_threads);
size_t wasi_dgram_svd_work(wasi_int m, wasi_int n, int n_threads);

/* |A - U diag(S) Vt|_F at any scale, with U m x K, S K, Vt K x n: the difference exists 64 rows at a time. */
wasi_status wasi_sdiff_norm(double *norm, const float *A, const float *U, const float *S, const float *Vt, wasi_int m,
                            wasi_int n, wasi_int K, void *scratch, int n_threads);
wasi_status wasi_ddiff_norm(double *norm, const double *A, const double *U, const double *S, const double *Vt,
                            wasi_int m, wasi_int n, wasi_int K, void *scratch, int n_threads);
size_t wasi_sdiff_norm_work(wasi_int n, wasi_int K, int n_threads);
size_t wasi_ddiff_norm_work(wasi_int n, wasi_int K, int n_threads);

#endif
