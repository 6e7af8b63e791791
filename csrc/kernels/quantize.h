/* A frozen matrix Q (O x I) in about half a byte a weight, made so that integers can multiply by it from both sides.
 *
 *     Q[o, i] = r[o] c[i] q[o, i],        q int8, |q| <= 127
 *
 * r (O) and c (I) are float32. With 8 bits q itself is stored. With 4 bits a weight stores a code 0..15, a group of
 * consecutive weights of a row stores one byte s, and q[o, i] = T[s[o, i / group]][code[o, i]], where T is a fixed
 * table of 128 rows: row s < 64 holds the 16 levels, spaced as the weights of a group are distributed, times
 * 127 * 2^(-s / 16); row 64 + s is its mirror image (the levels reach further down than up, and the long side goes
 * where the largest weight is).
 *
 * Why not one float scale a group: a scale that changes along I cannot leave the sum over I, nor one that changes along
 * O the sum over O, so one of x Q' and dy Q would have to round the weights a second time, to int8. Here r or c goes
 * into the activations, the other to the result, and both products use the very same q, without any further error.
 *
 * Memory: a row of codes is cut into blocks of 32 weights, the last one padded; byte j of a block of 4-bit codes holds
 * weight j in its low and weight 16 + j in its high half. `group` is a multiple of 32
 * up to WASI_QUANT_MAX_DIM, the last group may be short. */
#ifndef WASI_KERNELS_QUANTIZE_H
#define WASI_KERNELS_QUANTIZE_H

#include "common/status.h"

enum {
    WASI_QUANT_BLOCK = 32,
    WASI_QUANT_SHAPES = 128,   /* rows of the table */
    WASI_QUANT_MAX_DIM = 65536 /* of O and of I: 65536 * 255 * 127 < 2^31 */
};

extern const int8_t wasi_quant_table[WASI_QUANT_SHAPES][16];

typedef struct {
    const uint8_t *codes; /* O x wasi_quant_row_bytes(I, bits) */
    const uint8_t *s;     /* O x wasi_quant_groups(I, group), each below WASI_QUANT_SHAPES; NULL with 8 bits */
    const float *r, *c;
    wasi_int O, I, group;
    int bits; /* 4 or 8 */
} wasi_quant;

static inline wasi_int wasi_quant_blocks(wasi_int I)
{
    return (I + WASI_QUANT_BLOCK - 1) / WASI_QUANT_BLOCK;
}

static inline wasi_int wasi_quant_row_bytes(wasi_int I, int bits)
{
    return wasi_quant_blocks(I) * (WASI_QUANT_BLOCK * bits / 8);
}

static inline wasi_int wasi_quant_groups(wasi_int I, wasi_int group)
{
    return (I + group - 1) / group;
}

/* Fills codes, s (not used with 8 bits), r, c from W (O x I; O and I at least 1). c is the root of each column's root
 * mean square, so that a column of small weights keeps its resolution beside large ones; r lets the row's largest
 * |W / c| reach 127 * 2^(-1/4) (127 with 8 bits); each group takes the s of least squared error in W among those that
 * could be best. WASI_ERR_NONFINITE where W holds NaN or Inf; the results are then undefined.
 * `work`: wasi_quantize_work(I) bytes. */
wasi_status wasi_quantize(uint8_t *codes, uint8_t *s, float *r, float *c, const float *W, wasi_int O, wasi_int I,
                          wasi_int group, int bits, void *work, int n_threads);
size_t wasi_quantize_work(wasi_int I);

/* W = Q in float32 (O x I): for tests and for handing weights on, never needed to compute with Q. */
wasi_status wasi_dequantize(float *W, const wasi_quant *Q, int n_threads);

#endif
