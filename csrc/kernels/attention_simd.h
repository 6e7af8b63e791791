/* The inner loops of attention.c, on blocks in scratch memory.
 *
 * Every block is row-major, 64-byte-aligned and padded to rows of a multiple of WASI_LANES floats: there are no
 * ragged ends. A block of scores is key-major, S[key, query]: a query is a lane. */
#ifndef WASI_KERNELS_ATTENTION_SIMD_H
#define WASI_KERNELS_ATTENTION_SIMD_H

#include <stdbool.h>

#include "common/isa.h"
#include "common/status.h"

enum { WASI_LANES = 16 };

/* Row r of a tensor lies at p * row + r / per_head * head, where p is r % per_head, or place[r % per_head]. */
typedef struct {
    wasi_int row, head, per_head;
    const wasi_int *place; /* or NULL */
} wasi_row_walk;

/* to (rows x width) = factor * the rows [r0, r0 + rows) of D floats; zeros up to `width` and to whole LANES of rows. */
WASI_SIMD_DECLARE(void, wasi_attention_load,
                  (float *to, wasi_int width, const float *from, wasi_row_walk walk, wasi_int r0, wasi_int rows,
                   wasi_int D, float factor));
/* The way back: row r = factor[r] * row r of `from`, or += where `add`; factor may be NULL, for 1. */
WASI_SIMD_DECLARE(void, wasi_attention_store,
                  (float *to, wasi_row_walk walk, const float *from, wasi_int width, wasi_int r0, wasi_int rows,
                   wasi_int D, const float *factor, bool add));
/* C (m x n) = A B, or C += A B where `add`: A(i, k) at A[i * am + k * ak], one of am, ak is 1; B K x n; n in LANES. */
WASI_SIMD_DECLARE(void, wasi_attention_product,
                  (float *C, wasi_int ldc, const float *A, wasi_int am, wasi_int ak, const float *B, wasi_int ldb,
                   wasi_int m, wasi_int n, wasi_int K, bool add));
/* out (columns x rows) = x', or out += x' where `add`, x rows x columns; both sizes in LANES. */
WASI_SIMD_DECLARE(void, wasi_attention_transpose,
                  (float *out, wasi_int ld_out, const float *x, wasi_int ld, wasi_int rows, wasi_int columns,
                   bool add));
/* x[r, :] *= factor[r] for rows of `width`. */
WASI_SIMD_DECLARE(void, wasi_attention_scale_rows,
                  (float *x, wasi_int ld, const float *factor, wasi_int rows, wasi_int width));
/* out[r] = sum over columns of x[r, :] y[r, :]. */
WASI_SIMD_DECLARE(void, wasi_attention_row_dots,
                  (float *out, const float *x, const float *y, wasi_int ld, wasi_int rows, wasi_int width));
/* S[j, i] = -Inf where j > last[i]. */
WASI_SIMD_DECLARE(void, wasi_attention_hide, (float *S, const int32_t *last, wasi_int n_keys, wasi_int lanes));
/* S[j, i] = -Inf where key_side[j] != query_side[i]. */
WASI_SIMD_DECLARE(void, wasi_attention_separate,
                  (float *S, const int32_t *query_side, const int32_t *key_side, wasi_int n_keys, wasi_int lanes));
/* One step of the online softmax, from top = -Inf, sum = 0: top becomes the largest score so far of each lane,
 * shrink = exp(old top - top), S = exp(S - top), sum = sum * shrink + the sum over the keys of S. */
WASI_SIMD_DECLARE(void, wasi_attention_softmax,
                  (float *S, float *top, float *sum, float *shrink, wasi_int n_keys, wasi_int lanes));
/* Its end: top = lse = top + log(sum), sum = 1 / sum; -Inf and 0 where no key was visible. */
WASI_SIMD_DECLARE(void, wasi_attention_finish, (float *top, float *sum, wasi_int lanes));
/* P = exp(P - lse), dP = P (dP - delta): scores to probabilities, their gradient to that of the scores. */
WASI_SIMD_DECLARE(void, wasi_attention_softmax_backward,
                  (float *P, float *dP, const float *lse, const float *delta, wasi_int n_keys, wasi_int lanes));
/* out[i] += slices[s, i] for s = 0, 1, ... and begin <= i < end; a slice has n elements. */
WASI_SIMD_DECLARE(void, wasi_attention_sum_slices,
                  (float *out, const float *slices, wasi_int n, wasi_int n_slices, wasi_int begin, wasi_int end));

#endif
