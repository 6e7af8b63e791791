#include "kernels/quantize_simd.h"

#include <math.h>
#include <string.h>

enum { BLOCK = WASI_QUANT_BLOCK, HALF = WASI_QUANT_BLOCK / 2, LEVELS = 16, MIRROR = WASI_QUANT_SHAPES / 2 };

/* Shapes that can be best for a group whose largest |z| is m, counted from the one whose longest side is just m:
 * up to this many longer (the level beyond is used by nobody) and shorter (the largest weights are clipped). */
enum { LONGER = 5, SHORTER = 3, N_TRIED = LONGER + 1 + SHORTER };

void WASI_SIMD(wasi_quant_column_squares)(double *sums, const float *W, wasi_int O, wasi_int I, wasi_int begin,
                                          wasi_int end)
{
    for (wasi_int i = begin; i < end; i++)
        sums[i] = 0;
    for (wasi_int o = 0; o < O; o++)
        for (wasi_int i = begin; i < end; i++)
            sums[i] += (double)W[o * I + i] * W[o * I + i];
}

/* z[j] = W[j] / (c[j] r) and w[j] = c[j]^2 for one block of n <= BLOCK weights; zeros behind them. */
static void scale_block(float *z, float *w, const float *W, const float *c, const float *c_inv, float r_inv, wasi_int n)
{
    for (wasi_int j = 0; j < n; j++) {
        z[j] = W[j] * c_inv[j] * r_inv;
        w[j] = c[j] * c[j];
    }
    for (wasi_int j = n; j < BLOCK; j++)
        z[j] = w[j] = 0;
}

/* sum over j of w[j] (z[j] - level nearest to z[j])^2, the levels ascending. */
static float block_error(const float *z, const float *w, const int8_t *levels)
{
    float middle[LEVELS], step[LEVELS], sum = 0;
    for (int k = 1; k < LEVELS; k++) {
        middle[k] = 0.5f * (float)(levels[k - 1] + levels[k]);
        step[k] = (float)(levels[k] - levels[k - 1]);
    }
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < BLOCK; j++) {
        float q = levels[0];
#pragma GCC unroll 16
        for (int k = 1; k < LEVELS; k++)
            q += z[j] > middle[k] ? step[k] : 0;
        sum += w[j] * (z[j] - q) * (z[j] - q);
    }
    return sum;
}

static void code_block(uint8_t *codes, const float *z, const int8_t *levels)
{
    uint8_t code[BLOCK] = {0};
    for (int k = 1; k < LEVELS; k++) {
        float middle = 0.5f * (levels[k - 1] + levels[k]);
        for (int j = 0; j < BLOCK; j++)
            code[j] += z[j] > middle;
    }
    for (int j = 0; j < HALF; j++)
        codes[j] = (uint8_t)(code[j] | code[HALF + j] << 4);
}

/* Codes and s of the n weights of a group. */
static uint8_t quantize_group(uint8_t *codes, const float *W, const float *c, const float *c_inv, float r_inv,
                              wasi_int n)
{
    float largest = 0, z[BLOCK], w[BLOCK], error[2][N_TRIED] = {{0}};
    for (wasi_int j = 0; j < n; j++)
        largest = WASI_MAX(largest, fabsf(W[j] * c_inv[j] * r_inv));
    int first = (int)(16 * log2f(127 / WASI_MAX(largest, 1))) - LONGER;
    first = WASI_MIN(WASI_MAX(first, 0), MIRROR - N_TRIED);

    for (wasi_int i = 0; i < n; i += BLOCK) {
        for (int mirrored = 0; mirrored < 2; mirrored++) {
            scale_block(z, w, W + i, c + i, c_inv + i, mirrored ? -r_inv : r_inv, WASI_MIN(BLOCK, n - i));
            for (int k = 0; k < N_TRIED; k++)
                error[mirrored][k] += block_error(z, w, wasi_quant_table[first + k]);
        }
    }
    int best = 0;
    for (int k = 1; k < 2 * N_TRIED; k++)
        if (error[k / N_TRIED][k % N_TRIED] < error[best / N_TRIED][best % N_TRIED])
            best = k;
    int mirrored = best / N_TRIED, shape = first + best % N_TRIED;
    for (wasi_int i = 0; i < n; i += BLOCK) {
        scale_block(z, w, W + i, c + i, c_inv + i, mirrored ? -r_inv : r_inv, WASI_MIN(BLOCK, n - i));
        code_block(codes + i / 2, z, wasi_quant_table[shape]);
    }
    return (uint8_t)(mirrored * MIRROR + shape);
}

void WASI_SIMD(wasi_quantize_row)(uint8_t *codes, uint8_t *s, float *r, const float *W, const float *c,
                                  const float *c_inv, wasi_int I, wasi_int group, int bits)
{
    float largest = 0;
    for (wasi_int i = 0; i < I; i++)
        largest = WASI_MAX(largest, fabsf(W[i] * c_inv[i]));
    float top = bits == 4 ? 127 * 0.840896415f : 127; /* 2^(-1/4) */
    *r = largest / top;
    float r_inv = *r > 0 ? 1 / *r : 0;
    if (bits == 4) {
        for (wasi_int i = 0; i < I; i += group)
            s[i / group] = quantize_group(codes + i / 2, W + i, c + i, c_inv + i, r_inv, WASI_MIN(group, I - i));
        return;
    }
    for (wasi_int i = 0; i < I; i++)
        codes[i] = (uint8_t)(int8_t)rintf(W[i] * c_inv[i] * r_inv);
    memset(codes + I, 0, (size_t)(wasi_quant_row_bytes(I, 8) - I));
}

void WASI_SIMD(wasi_dequantize_row)(float *W, const wasi_quant *Q, wasi_int o, wasi_int begin, wasi_int n)
{
    const uint8_t *codes = Q->codes + o * wasi_quant_row_bytes(Q->I, Q->bits);
    const float *c = Q->c + begin;
    if (Q->bits == 8) {
        for (wasi_int i = 0; i < n; i++)
            W[i] = Q->r[o] * c[i] * (int8_t)codes[begin + i];
        return;
    }
    const uint8_t *s = Q->s + o * wasi_quant_groups(Q->I, Q->group);
    for (wasi_int i = 0; i < n; i += BLOCK) {
        const int8_t *levels = wasi_quant_table[s[(begin + i) / Q->group] % WASI_QUANT_SHAPES];
        const uint8_t *block = codes + (begin + i) / 2;
        float q[BLOCK];
        for (int j = 0; j < HALF; j++) {
            q[j] = levels[block[j] & 15];
            q[HALF + j] = levels[block[j] >> 4];
        }
        for (wasi_int j = 0; j < WASI_MIN(BLOCK, n - i); j++)
            W[i + j] = Q->r[o] * c[i + j] * q[j];
    }
}
