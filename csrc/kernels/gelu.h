/* GELU, exact: g = h Phi(h) with Phi, phi the standard normal distribution function and density;
 * dh = dy d(h), d(h) = Phi(h) + h phi(h).
 *
 * Backward needs h, or only a code of d(h) (Few-Bit Backward, arXiv 2202.00441): 2 or 4 bits a number that say which
 * of the levels y_0 < ... < y_(K-1), K = 2^bits, is nearest to d(h). The levels minimise E[(d(h) - y)^2] over a
 * standard normal h. The paper cuts h into K intervals; cutting the values of d leaves the same error for 2 bits and a
 * fifth less for 4, since d is not monotonic and one level may serve several intervals of h. y_k + y_(K-1-k) = 1.
 *
 * Codes lie in blocks of 64 bytes: byte j of a block holds, from its low bits up, the codes of the block's numbers
 * j, j + 64, ... (128 numbers a block for 4 bits, 256 for 2), so that packing is a loop over whole vectors. */
#ifndef WASI_KERNELS_GELU_H
#define WASI_KERNELS_GELU_H

#include "common/status.h"

/* g = gelu(h); g may be h. */
wasi_status wasi_gelu_forward(float *g, const float *h, wasi_int n, int n_threads);
/* h += b for each of M rows of C, g = gelu(h); where g is h only gelu of the sum remains. */
wasi_status wasi_bias_gelu_forward(float *g, float *h, const float *b, wasi_int M, wasi_int C, int n_threads);
/* dh = dy d(h); dh may be dy or h. */
wasi_status wasi_gelu_backward(float *dh, const float *dy, const float *h, wasi_int n, int n_threads);

/* g = gelu(h + b) for M rows of C and the codes of d(h + b); b may be NULL, g may be h, which is else left alone.
 * bits: 2 or 4. */
wasi_status wasi_gelu_encode(float *g, uint8_t *codes, const float *h, const float *b, int bits, wasi_int M, wasi_int C,
                             int n_threads);
/* dh = dy y_code; dh may be dy. */
wasi_status wasi_gelu_decode_backward(float *dh, const float *dy, const uint8_t *codes, int bits, wasi_int n,
                                      int n_threads);
/* The bytes that the codes of n numbers take. */
static inline wasi_int wasi_gelu_code_bytes(wasi_int n, int bits)
{
    wasi_int block = 64 * (8 / bits);
    return (n + block - 1) / block * 64;
}

#endif
