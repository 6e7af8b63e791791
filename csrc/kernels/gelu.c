#include "kernels/gelu.h"

#include "common/parallel.h"
#include "kernels/elementwise.h"
#include "kernels/gelu_simd.h"

wasi_status wasi_gelu_forward(float *g, const float *h, wasi_int n, int n_threads)
{
    return wasi_map(g, h, WASI_PICK(wasi_gelu_some), n, n_threads);
}

wasi_status wasi_gelu_backward(float *dh, const float *dy, const float *h, wasi_int n, int n_threads)
{
    return wasi_map2(dh, dy, h, WASI_PICK(wasi_gelu_backward_some), n, n_threads);
}

typedef struct {
    float *g, *h;
    const float *b;
    wasi_int C;
} bias_job;

static wasi_status bias_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const bias_job *job = ctx;
    wasi_int at = begin * job->C;
    WASI_PICK(wasi_bias_gelu_rows)(job->g + at, job->h + at, job->b, end - begin, job->C);
    return WASI_OK;
}

wasi_status wasi_bias_gelu_forward(float *g, float *h, const float *b, wasi_int M, wasi_int C, int n_threads)
{
    bias_job job = {g, h, b, C};
    return wasi_parallel(n_threads, M, wasi_grain(C), bias_part, &job);
}

/* The grain of the coded passes is a multiple of a block of codes, so that no byte has two writers. */
enum { CODE_GRAIN = 8192 };

typedef struct {
    float *g;
    uint8_t *codes;
    const float *h, *b;
    int bits;
    wasi_int C;
} encode_job;

static wasi_status encode_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const encode_job *job = ctx;
    WASI_PICK(wasi_gelu_encode_some)(job->g, job->codes, job->h, job->b, job->bits, job->C, begin, end);
    return WASI_OK;
}

wasi_status wasi_gelu_encode(float *g, uint8_t *codes, const float *h, const float *b, int bits, wasi_int M, wasi_int C,
                             int n_threads)
{
    encode_job job = {g, codes, h, b, bits, C};
    return wasi_parallel(n_threads, M * C, CODE_GRAIN, encode_part, &job);
}

typedef struct {
    float *dh;
    const float *dy;
    const uint8_t *codes;
    int bits;
} decode_job;

static wasi_status decode_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const decode_job *job = ctx;
    WASI_PICK(wasi_gelu_decode_some)(job->dh + begin, job->dy + begin,
                                     job->codes + wasi_gelu_code_bytes(begin, job->bits), job->bits, end - begin);
    return WASI_OK;
}

wasi_status wasi_gelu_decode_backward(float *dh, const float *dy, const uint8_t *codes, int bits, wasi_int n,
                                      int n_threads)
{
    decode_job job = {dh, dy, codes, bits};
    return wasi_parallel(n_threads, n, CODE_GRAIN, decode_part, &job);
}
