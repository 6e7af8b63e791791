/* Softmax cross-entropy of B rows of V logits z against class labels or soft targets.
 *
 * Row b wants the distribution q_j = (1 - e) p_j + e / V: p_j = [j = t] for a label t, e the label smoothing. With
 * class weights w (1 where there are none) and a_j = w_j q_j, A = sum_j a_j:
 *
 *     loss = 1/N sum_b (A lse(z) - sum_j a_j z_j),   dloss/dz_j = (A softmax(z)_j - a_j) / N,
 *
 * N = B, or for labels the sum over the rows of w_t, as in PyTorch. The row's maximum is taken out first. */
#ifndef WASI_KERNELS_CROSS_ENTROPY_H
#define WASI_KERNELS_CROSS_ENTROPY_H

#include "common/status.h"

/* loss: summed in float64 in row order; n_correct: rows whose largest logit is the target's (the first of equals; of a
 * soft target its largest entry). dlogits (B x V) may be NULL (not wanted) or logits itself. One of labels (B) and soft
 * (B x V) is NULL; weights (V) may be. Labels outside 0..V-1: WASI_ERR_RANGE, and nothing is written. A NaN logit gives
 * a NaN loss. `work` has wasi_cross_entropy_work(B, V, n_threads) bytes. */
wasi_status wasi_cross_entropy(double *loss, int64_t *n_correct, float *dlogits, const float *logits,
                               const int64_t *labels, const float *soft, const float *weights, float smoothing,
                               wasi_int B, wasi_int V, void *work, int n_threads);
size_t wasi_cross_entropy_work(wasi_int B, wasi_int V, int n_threads);

#endif
