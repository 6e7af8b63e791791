/* Softmax cross-entropy with label smoothing, mean over B rows of V logits.
 *
 * Row b with target t and smoothing e:  loss = lse(z) - (1 - e) z_t - e mean(z),
 * dloss/dz_j = (softmax(z)_j - (1 - e) [j = t] - e / V) / B.  The row's maximum is taken out first. */
#ifndef WASI_KERNELS_CROSS_ENTROPY_H
#define WASI_KERNELS_CROSS_ENTROPY_H

#include "common/status.h"

/* loss: the mean, summed in float64 in row order; n_correct: rows whose largest logit is the target's (the first of equals).
 * dlogits (B x V) may be NULL (not wanted) or logits itself. Labels outside 0..V-1: WASI_ERR_RANGE, and nothing is written.
 * NaN logits give a NaN loss. */
wasi_status wasi_cross_entropy(double *loss, int64_t *n_correct, float *dlogits, const float *logits,
                               const int64_t *targets, float smoothing, wasi_int B, wasi_int V, void *scratch,
                               int n_threads);
size_t wasi_cross_entropy_work(wasi_int B);

#endif
