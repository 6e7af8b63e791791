/* Products of a strip with a few vectors, as the strip lies: GEMMs so narrow that packing the strip, which BLAS does
 * first, would cost as much as the product. A is d x n with rows lda apart, row-major. Meant for K up to some dozens. */
#ifndef WASI_KERNELS_SKINNY_SIMD_H
#define WASI_KERNELS_SKINNY_SIMD_H

#include "common/isa.h"
#include "common/status.h"

/* Bytes of one sum in progress: its partial sums lie side by side. */
enum { WASI_LANE_BYTES = 64 };

/* V (K x n, rows ldv apart) = alpha M' A with M d x K. What lies `ahead` numbers beyond A, the strip that follows, is
 * fetched into the cache meanwhile; 0: nothing. */
WASI_SIMD_DECLARE(void, wasi_sproject, (float *V, wasi_int ldv, float alpha, const float *M, const float *A,
                                        wasi_int lda, wasi_int d, wasi_int K, wasi_int n, wasi_int ahead));
WASI_SIMD_DECLARE(void, wasi_dproject, (double *V, wasi_int ldv, double alpha, const double *M, const double *A,
                                        wasi_int lda, wasi_int d, wasi_int K, wasi_int n, wasi_int ahead));
/* lanes (d x K sums of WASI_LANE_BYTES each, 64-byte aligned, zeroed first by the caller) += A V' with V K x n. */
WASI_SIMD_DECLARE(void, wasi_sgather, (float *lanes, const float *A, wasi_int lda, const float *V, wasi_int ldv,
                                       wasi_int d, wasi_int K, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_dgather, (double *lanes, const double *A, wasi_int lda, const double *V, wasi_int ldv,
                                       wasi_int d, wasi_int K, wasi_int n));
/* sum (n numbers) = alpha times the n sums in `lanes`. */
WASI_SIMD_DECLARE(void, wasi_sjoin_lanes, (float *sum, float alpha, const float *lanes, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_djoin_lanes, (double *sum, double alpha, const double *lanes, wasi_int n));

#endif
