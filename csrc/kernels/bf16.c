#include "kernels/bf16.h"

#include "common/parallel.h"
#include "kernels/bf16_simd.h"

typedef struct {
    uint16_t *narrow;
    float *wide;
    const uint16_t *from_narrow;
    const float *from_wide;
} bf16_job;

static wasi_status round_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const bf16_job *job = ctx;
    WASI_PICK(wasi_bf16_round_span)(job->narrow + begin, job->from_wide + begin, end - begin);
    return WASI_OK;
}

wasi_status wasi_bf16_round(uint16_t *out, const float *x, wasi_int n, int n_threads)
{
    bf16_job job = {.narrow = out, .from_wide = x};
    return wasi_parallel(n_threads, n, wasi_grain(1), round_part, &job);
}

static wasi_status expand_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const bf16_job *job = ctx;
    WASI_PICK(wasi_bf16_expand_span)(job->wide + begin, job->from_narrow + begin, end - begin);
    return WASI_OK;
}

wasi_status wasi_bf16_expand(float *out, const uint16_t *x, wasi_int n, int n_threads)
{
    bf16_job job = {.wide = out, .from_narrow = x};
    return wasi_parallel(n_threads, n, wasi_grain(1), expand_part, &job);
}

static wasi_status add_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const bf16_job *job = ctx;
    WASI_PICK(wasi_bf16_add_span)(job->narrow + begin, job->from_wide + begin, end - begin);
    return WASI_OK;
}

wasi_status wasi_bf16_add(uint16_t *sum, const float *x, wasi_int n, int n_threads)
{
    bf16_job job = {.narrow = sum, .from_wide = x};
    return wasi_parallel(n_threads, n, wasi_grain(1), add_part, &job);
}
