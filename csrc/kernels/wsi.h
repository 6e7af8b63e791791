/* The WSI step: one optimiser step and one subspace iteration on W = L R, in factor space.
 *
 * L (O x K) has orthonormal columns, R (K x I) = T' Q has the orthonormal row basis Q (K x I) and the triangle T.
 * A tangent vector of the rank-K matrices at W is a pair (A, B): L A + B Q, with A K x I and L' B = 0, B O x K.
 * The gradient G = dLoss/dW is known by dR = L' G and dL = G R' alone; its projection on the tangent space is
 *     A = dR,   B = (I - L L') dL T^-1   (= (I - L L') G Q').
 * A direction (A, B) then gives W1 = L A1 - lr B Q with A1 = R - lr A, of rank <= 2 K, and the iteration
 *     L_new = orth(W1 A1') = orth(L - lr B M),   M = Q A1' (A1 A1')^-1,
 *     R_new = L_new' W1 = (L_new' L) A1 - lr (L_new' B) Q
 * needs K x K products besides; no O x I array exists. L_new = (L - lr B M) N^-1 with N' N = the Gram matrix, from
 * K x K products too. K x K algebra, Gram matrices and triangular divisions are float64; tall GEMMs are of the
 * factors' type. R_new is computed with L_new, so W does not depend on signs.
 *
 * What moves from one tangent space to the next:
 *   momentum, and Adam's first moment, is a tangent vector and is projected on the new tangent space: exact.
 *     A_new = L_new' (L A + B Q),   B_new = (I - L_new L_new') (L A + B Q) Q_new'
 *   Adam's second moments are variances of coordinates, taken as independent: v -> (X o X) v for A's rows with
 *     X = L_new' L, v -> v (D o D) for B's columns with D = Q Q_new'; o is the elementwise product. An approximation.
 *   Adam divides coordinate by coordinate, so its step depends on the bases (L, Q); B is projected again after it.
 *
 * Source: WASI (arXiv 2510.09160), section 3.1, in the factor form of fixed-rank Riemannian optimisation. */
#ifndef WASI_KERNELS_WSI_H
#define WASI_KERNELS_WSI_H

#include "common/status.h"

typedef enum { WASI_WSI_SGD, WASI_WSI_MOMENTUM, WASI_WSI_ADAMW } wasi_wsi_rule;

typedef struct {
    wasi_wsi_rule rule;
    double lr, grad_scale; /* the gradient is grad_scale * (dL, dR) */
    double weight_decay;   /* SGD, momentum: weight_decay * W joins the gradient; AdamW: W *= 1 - lr weight_decay */
    double momentum;       /* buffer = momentum * buffer + gradient */
    double beta1, beta2, epsilon;
    int64_t step; /* AdamW: 1 at the first step */
} wasi_wsi_options;

/* One step in place. mA (K x I), mB (O x K): the buffer of momentum and AdamW; vA, vB likewise: AdamW's second moments;
 * all start as zeros; NULL where the rule has none. Tri (K x K, float64) is R's triangle from wsi_gradient_norm2, or
 * NULL. dL, dR are only read.
 * WASI_ERR_RANK where R, A1 or the new R has collapsed (cond above about 3e6 with rows scaled to unit norm) and
 * WASI_ERR_NONFINITE where the new factors would hold NaN or Inf: then nothing has changed. */
wasi_status wasi_swsi_step(float *L, float *R, float *mA, float *mB, float *vA, float *vB, const double *Tri,
                           const float *dL, const float *dR, const wasi_wsi_options *options, wasi_int O, wasi_int I,
                           wasi_int K, void *scratch, int n_threads);
wasi_status wasi_dwsi_step(double *L, double *R, double *mA, double *mB, double *vA, double *vB, const double *Tri,
                           const double *dL, const double *dR, const wasi_wsi_options *options, wasi_int O, wasi_int I,
                           wasi_int K, void *scratch, int n_threads);
size_t wasi_swsi_step_work(wasi_wsi_rule rule, wasi_int O, wasi_int I, wasi_int K, int n_threads);
size_t wasi_dwsi_step_work(wasi_wsi_rule rule, wasi_int O, wasi_int I, wasi_int K, int n_threads);

/* norm2 = |dR|^2 + |(I - L L') dL T^-1|^2, the squared norm of the projected gradient, and R's triangle Tri (K x K). */
wasi_status wasi_swsi_gradient_norm2(double *norm2, double *Tri, const float *L, const float *R, const float *dL,
                                     const float *dR, wasi_int O, wasi_int I, wasi_int K, void *scratch, int n_threads);
wasi_status wasi_dwsi_gradient_norm2(double *norm2, double *Tri, const double *L, const double *R, const double *dL,
                                     const double *dR, wasi_int O, wasi_int I, wasi_int K, void *scratch,
                                     int n_threads);
size_t wasi_swsi_gradient_norm2_work(wasi_int O, wasi_int I, wasi_int K, int n_threads);
size_t wasi_dwsi_gradient_norm2_work(wasi_int O, wasi_int I, wasi_int K, int n_threads);

#endif
