#include "kernels/silu.h"

#include "common/parallel.h"
#include "kernels/silu_simd.h"

typedef struct {
    float *out;
    const float *dy, *h;
} silu_job;

static wasi_status forward_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const silu_job *job = ctx;
    WASI_PICK(wasi_silu_some)(job->out + begin, job->h + begin, end - begin);
    return WASI_OK;
}

wasi_status wasi_silu_forward(float *g, const float *h, wasi_int n, int n_threads)
{
    silu_job job = {g, NULL, h};
    return wasi_parallel(n_threads, n, wasi_grain(1), forward_part, &job);
}

static wasi_status backward_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const silu_job *job = ctx;
    WASI_PICK(wasi_silu_backward_some)(job->out + begin, job->dy + begin, job->h + begin, end - begin);
    return WASI_OK;
}

wasi_status wasi_silu_backward(float *dh, const float *dy, const float *h, wasi_int n, int n_threads)
{
    silu_job job = {dh, dy, h};
    return wasi_parallel(n_threads, n, wasi_grain(1), backward_part, &job);
}

typedef struct {
    float *da, *db; /* forward: g, NULL */
    const float *dy, *a, *b;
} swiglu_job;

static wasi_status swiglu_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const swiglu_job *job = ctx;
    WASI_PICK(wasi_swiglu_some)(job->da + begin, job->a + begin, job->b + begin, end - begin);
    return WASI_OK;
}

wasi_status wasi_swiglu_forward(float *g, const float *a, const float *b, wasi_int n, int n_threads)
{
    swiglu_job job = {g, NULL, NULL, a, b};
    return wasi_parallel(n_threads, n, wasi_grain(1), swiglu_part, &job);
}

static wasi_status swiglu_backward_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const swiglu_job *job = ctx;
    WASI_PICK(wasi_swiglu_backward_some)(job->da + begin, job->db + begin, job->dy + begin, job->a + begin,
                                         job->b + begin, end - begin);
    return WASI_OK;
}

wasi_status wasi_swiglu_backward(float *da, float *db, const float *dy, const float *a, const float *b, wasi_int n,
                                 int n_threads)
{
    swiglu_job job = {da, db, dy, a, b};
    return wasi_parallel(n_threads, n, wasi_grain(1), swiglu_backward_part, &job);
}
