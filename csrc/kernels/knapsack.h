/* Multiple-choice knapsack: of each of n groups exactly one choice, so that
 *
 *     sum of values is least,   subject to   sum of weights <= limit.
 *
 * Values and weights are >= 0, with finite sums. Bytes are exact as doubles: give integers whose sum stays below 2^53. The rank
 * planner minimises error under bytes, and with the roles exchanged bytes under error. */
#ifndef WASI_KERNELS_KNAPSACK_H
#define WASI_KERNELS_KNAPSACK_H

#include "common/status.h"

/* choice (n): the index within its group of what was chosen; *value, *weight: its sums, added up in group order. Of
 * equal values the least weight is taken; equal ones of those are told apart by a fixed rule.
 * values, weights: the choices of all groups one after another; group g has those from first[g] up to first[g + 1], at
 * least one; first[0] = 0.
 * WASI_ERR_RANGE: nothing fits; then *weight is the least possible sum and *value what it costs, `choice` the choices.
 * WASI_ERR_NONFINITE: a number is negative or NaN, or a sum is not finite. WASI_ERR_MEMORY: the proof of optimality would
 * take more than max_states (1 to 2^31 - 1) partial sums. `work` has wasi_knapsack_work(n, first[n], max_states) bytes. */
wasi_status wasi_knapsack(int32_t *choice, double *value, double *weight, const double *values, const double *weights,
                          const int64_t *first, wasi_int n, double limit, wasi_int max_states, void *work);
size_t wasi_knapsack_work(wasi_int n, int64_t n_choices, wasi_int max_states);

#endif
