#include "kernels/gelu_simd.h"

#include "common/normal.h"

static inline float gelu(float h)
{
    return h * wasi_normal_at(h).cdf;
}

static inline float derivative(float h)
{
    wasi_normal normal = wasi_normal_at(h);
    return normal.cdf + h * normal.pdf;
}

void WASI_SIMD(wasi_gelu_some)(float *g, const float *h, wasi_int n)
{
#pragma omp simd
    for (wasi_int i = 0; i < n; i++)
        g[i] = gelu(h[i]);
}

void WASI_SIMD(wasi_bias_gelu_rows)(float *g, float *h, const float *b, wasi_int M, wasi_int C)
{
    for (wasi_int m = 0; m < M; m++, g += C, h += C) {
#pragma omp simd
        for (wasi_int c = 0; c < C; c++) {
            float sum = h[c] + b[c];
            h[c] = sum;
            g[c] = gelu(sum);
        }
    }
}

void WASI_SIMD(wasi_gelu_backward_some)(float *dh, const float *dy, const float *h, wasi_int n)
{
#pragma omp simd
    for (wasi_int i = 0; i < n; i++)
        dh[i] = dy[i] * derivative(h[i]);
}

/* The levels are 1/2 + m and 1/2 - m for the magnitudes m below; a code is the index of m, then a bit for minus. */
static const float magnitude2[2] = {0.187324903f, 0.546385928f};
static const float magnitude4[8] = {0.044239999f, 0.132537493f, 0.220267163f, 0.306974997f,
                                    0.392059595f, 0.474606688f, 0.549721626f, 0.613156337f};

enum { LANES = 64, MAX_BLOCK = LANES * 4 }; /* bytes of a block of codes, and the most numbers that one holds */

static inline uint32_t code2(float d)
{
    float m = fabsf(d - 0.5f);
    return (uint32_t)(m > 0.5f * (magnitude2[0] + magnitude2[1])) | (uint32_t)(d < 0.5f) << 1;
}

#define CUT(k) (0.5f * (magnitude4[k] + magnitude4[k + 1]))

/* Bisection: each comparison gives a bit and chooses the next cut. */
static inline uint32_t code4(float d)
{
    float m = fabsf(d - 0.5f);
    uint32_t high = m > CUT(3), middle = m > (high ? CUT(5) : CUT(1));
    float cut_below = middle ? CUT(2) : CUT(0), cut_above = middle ? CUT(6) : CUT(4);
    uint32_t low = m > (high ? cut_above : cut_below);
    return low | middle << 1 | high << 2 | (uint32_t)(d < 0.5f) << 3;
}

/* A choice by bits: a table look-up would be a gather, or a scalar loop. */
static inline float level2(uint32_t code)
{
    float m = code & 1 ? magnitude2[1] : magnitude2[0];
    return code & 2 ? 0.5f - m : 0.5f + m;
}

static inline float level4(uint32_t code)
{
    float m01 = code & 1 ? magnitude4[1] : magnitude4[0], m23 = code & 1 ? magnitude4[3] : magnitude4[2];
    float m45 = code & 1 ? magnitude4[5] : magnitude4[4], m67 = code & 1 ? magnitude4[7] : magnitude4[6];
    float low = code & 2 ? m23 : m01, high = code & 2 ? m67 : m45, m = code & 4 ? high : low;
    return code & 8 ? 0.5f - m : 0.5f + m;
}

/* sum = h + b for the numbers at .. at + count of rows of C. */
static void add_bias(float *sum, const float *h, const float *b, wasi_int C, wasi_int at, wasi_int count)
{
    for (wasi_int i = 0, run; i < count; i += run) {
        wasi_int c = (at + i) % C;
        run = WASI_MIN(C - c, count - i);
        for (wasi_int j = 0; j < run; j++)
            sum[i + j] = h[at + i + j] + b[c + j];
    }
}

void WASI_SIMD(wasi_gelu_encode_some)(float *g, uint8_t *codes, const float *h, const float *b, int bits, wasi_int C,
                                      wasi_int begin, wasi_int end)
{
    float sum[MAX_BLOCK], d[MAX_BLOCK];
    wasi_int block = LANES * (8 / bits);
    codes += begin / block * LANES;
    for (wasi_int at = begin; at < end; at += block, codes += LANES) {
        wasi_int count = WASI_MIN(block, end - at);
        const float *in = h + at;
        if (b) {
            add_bias(sum, h, b, C, at, count);
            in = sum;
        }
#pragma omp simd
        for (wasi_int i = 0; i < count; i++) {
            float x = in[i];
            wasi_normal normal = wasi_normal_at(x);
            g[at + i] = x * normal.cdf;
            d[i] = normal.cdf + x * normal.pdf;
        }
        for (wasi_int i = count; i < block; i++)
            d[i] = 0;
        if (bits == 2)
            for (int j = 0; j < LANES; j++)
                codes[j] = (uint8_t)(code2(d[j]) | code2(d[j + LANES]) << 2 | code2(d[j + 2 * LANES]) << 4 |
                                     code2(d[j + 3 * LANES]) << 6);
        else
            for (int j = 0; j < LANES; j++)
                codes[j] = (uint8_t)(code4(d[j]) | code4(d[j + LANES]) << 4);
    }
}

void WASI_SIMD(wasi_gelu_decode_some)(float *dh, const float *dy, const uint8_t *codes, int bits, wasi_int n)
{
    for (wasi_int at = 0; at < n; codes += LANES) {
        for (int shift = 0; shift < 8 && at < n; shift += bits, at += LANES) {
            int count = (int)WASI_MIN(LANES, n - at);
            if (bits == 2)
#pragma omp simd
                for (int j = 0; j < count; j++)
                    dh[at + j] = dy[at + j] * level2(codes[j] >> shift);
            else
#pragma omp simd
                for (int j = 0; j < count; j++)
                    dh[at + j] = dy[at + j] * level4(codes[j] >> shift);
        }
    }
}
