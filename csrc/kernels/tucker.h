/* Tucker decompositions of arrays of 2 to 5 dimensions: A (d_1 x ... x d_N) ~ S x_1 U_1 ... x_N U_N with a core
 * S (K_1 x ... x K_N) and U_n (d_n x K_n) of orthonormal columns. Arrays are row-major and contiguous.
 *
 * Nothing is unfolded. Seen from mode n, A is P matrices of d_n x Q, P and Q the products of the dimensions before and
 * after n (or one matrix of P x d_n for the last mode), and every product along a mode is a loop of GEMMs over pieces
 * of these as they lie, cut over the threads.
 *
 * A mode that is not cut is left alone: K_n = d_n, its U is NULL and stands for the identity. */
#ifndef WASI_KERNELS_TUCKER_H
#define WASI_KERNELS_TUCKER_H

#include <stdbool.h>

#include "common/status.h"

enum { WASI_TUCKER_DIMS = 5 };

typedef struct {
    int ndim;
    wasi_int dim[WASI_TUCKER_DIMS], rank[WASI_TUCKER_DIMS];
    bool cut[WASI_TUCKER_DIMS]; /* mode n has a factor; otherwise rank[n] == dim[n] */
} wasi_tucker_shape;

/* out = A x_mode M (M: J x d), or A x_mode M' (M: d x J) if `trans`: dimension d = dim[mode] becomes J. */
wasi_status wasi_smode_dot(float *out, const float *A, const float *M, bool trans, int ndim, const wasi_int *dim,
                           int mode, wasi_int J, int n_threads);
wasi_status wasi_dmode_dot(double *out, const double *A, const double *M, bool trans, int ndim, const wasi_int *dim,
                           int mode, wasi_int J, int n_threads);

/* The left singular vectors of A's unfolding along `mode`, exactly, from the Gram matrix in float64: S (d) receives the
 * singular values, descending, accurate to 1e-8 of the first; the vectors lie as rows in Z (d x d, float64), in S's
 * order. WASI_ERR_NONFINITE, WASI_ERR_LAPACK. */
wasi_status wasi_smode_svd(double *S, double *Z, const float *A, int ndim, const wasi_int *dim, int mode, void *scratch,
                           int n_threads);
wasi_status wasi_dmode_svd(double *S, double *Z, const double *A, int ndim, const wasi_int *dim, int mode,
                           void *scratch, int n_threads);
size_t wasi_smode_svd_work(int ndim, const wasi_int *dim, int mode, int n_threads);
size_t wasi_dmode_svd_work(int ndim, const wasi_int *dim, int mode, int n_threads);

/* One warm-started step of activation subspace iteration (ASI): U[n] is overwritten with orth(T_n (T_n' U[n])), T_n the
 * unfolding along n of the array as it stands, then the array is multiplied by U[n]' and so shrinks before the next
 * mode: the sequentially truncated form, several times cheaper than iterating on A itself and no less accurate. The
 * cheapest order of modes is taken. Where d_n is below some times K_n, the Gram matrix T_n T_n' costs less than the two
 * products, and several iterations are made on it. n_iter >= 1: iterations a mode otherwise. A mode that is not `warm`
 * starts from random numbers of `seed` and takes two iterations more. S receives the core: A x_1 U_1' ... x_N U_N'.
 * With orthonormal U's the squared error is |A|^2 - |S|^2.
 * WASI_ERR_NONFINITE: S is undefined, and factors of modes done before the one that failed have changed.
 * Source: WASI (arXiv 2510.09160), section 3.3; sequential truncation: Vannieuwenhoven et al., 2012. */
wasi_status wasi_sasi_step(float *S, float *const *U, const bool *warm, const float *A, const wasi_tucker_shape *shape,
                           int n_iter, uint64_t seed, void *scratch, int n_threads);
wasi_status wasi_dasi_step(double *S, double *const *U, const bool *warm, const double *A,
                           const wasi_tucker_shape *shape, int n_iter, uint64_t seed, void *scratch, int n_threads);
size_t wasi_sasi_step_work(const wasi_tucker_shape *shape, int n_iter, int n_threads);
size_t wasi_dasi_step_work(const wasi_tucker_shape *shape, int n_iter, int n_threads);

/* dW (G x d_N) += g' x over all rows, for x = S x_1 U_1 ... x_N U_N seen as rows of d_N and g (d_1 x ... x d_{N-1}
 * x G): the weight gradient from a compressed activation. x is not rebuilt: of the modes before the last, some shrink g
 * by U_n' and the others grow S by U_n, in the cheapest order.
 * The factors need not be orthonormal. For a factored layer: dR += gl' x with g = gl, and dL += dy' z with g = dy and
 * R U_N in the place of U_N. */
wasi_status wasi_smatmul_tucker(float *dW, const float *g, const float *S, const float *const *U,
                                const wasi_tucker_shape *shape, wasi_int G, void *scratch, int n_threads);
wasi_status wasi_dmatmul_tucker(double *dW, const double *g, const double *S, const double *const *U,
                                const wasi_tucker_shape *shape, wasi_int G, void *scratch, int n_threads);
size_t wasi_smatmul_tucker_work(const wasi_tucker_shape *shape, wasi_int G);
size_t wasi_dmatmul_tucker_work(const wasi_tucker_shape *shape, wasi_int G);

#endif
