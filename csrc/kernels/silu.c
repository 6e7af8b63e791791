#include "kernels/silu.h"

#include "common/parallel.h"
#include "kernels/elementwise.h"
#include "kernels/silu_simd.h"

wasi_status wasi_silu_forward(float *g, const float *h, wasi_int n, int n_threads)
{
    return wasi_map(g, h, WASI_PICK(wasi_silu_some), n, n_threads);
}

wasi_status wasi_silu_backward(float *dh, const float *dy, const float *h, wasi_int n, int n_threads)
{
    return wasi_map2(dh, dy, h, WASI_PICK(wasi_silu_backward_some), n, n_threads);
}

wasi_status wasi_swiglu_forward(float *g, const float *a, const float *b, wasi_int n, int n_threads)
{
    return wasi_map2(g, a, b, WASI_PICK(wasi_swiglu_some), n, n_threads);
}

typedef struct {
    float *da, *db;
    const float *dy, *a, *b;
} swiglu_job;

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
