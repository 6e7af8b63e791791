/* Products of float32 matrices whose numbers are rounded to bfloat16 on the way in, with float32 sums.
 *
 * C (m x n) (+)= op(A) op(B) + b, row-major, as in common/blas.h; b (n) is added to every row and may be NULL. Two products in the
 * time of one of sgemm's, where the processor has AVX512-BF16. Each factor errs by at most 2^-9 of itself: the error of the result
 * is about 2^-9 |A| |B| / sqrt(k) a term, that of PyTorch's "medium" precision.
 *
 * A thread rounds a block of its rows of A and 32 columns of B at a time into its share of `work`, wasi_bgemm_work() bytes. */
#ifndef WASI_KERNELS_BGEMM_H
#define WASI_KERNELS_BGEMM_H

#include <stdbool.h>

#include "common/status.h"

bool wasi_bgemm_available(void); /* has this processor, at the instruction set in use, such products? */
/* The knob: may products that allow it round to bfloat16? A binding reads it once per call, and hands its scratch on. */
bool wasi_bgemm_chosen(void); /* and available */
void wasi_bgemm_choose(bool chosen);

/* Is it worth the packing? Below, the same product in float32 is faster. */
bool wasi_bgemm_pays(wasi_int m, wasi_int n, wasi_int k);

wasi_status wasi_bgemm(bool ta, bool tb, wasi_int m, wasi_int n, wasi_int k, const float *A, wasi_int lda, const float *B,
                       wasi_int ldb, const float *b, bool add, float *C, wasi_int ldc, void *work, int n_threads);
/* C = A op(B) with B in bfloat16 bits: nothing of it is rounded, and no float32 copy of it is made. */
wasi_status wasi_bgemm_bits(bool tb, wasi_int m, wasi_int n, wasi_int k, const float *A, wasi_int lda, const uint16_t *B,
                            wasi_int ldb, float *C, wasi_int ldc, void *work, int n_threads);
size_t wasi_bgemm_work(int n_threads);

#endif
