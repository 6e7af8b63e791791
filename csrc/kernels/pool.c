#include "kernels/pool.h"

#include "common/parallel.h"
#include "kernels/pool_simd.h"

typedef struct {
    float *y, *dx;
    uint8_t *tap;
    const float *x, *dy;
    const uint8_t *kept;
    const wasi_conv *conv;
} pool_job;

static wasi_status forward_lines(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const pool_job *job = ctx;
    WASI_PICK(wasi_max_pool_lines)(job->y, job->tap, job->x, job->conv, begin, end);
    return WASI_OK;
}

wasi_status wasi_max_pool_forward(float *y, uint8_t *tap, const float *x, const wasi_conv *conv, int n_threads)
{
    pool_job job = {.y = y, .tap = tap, .x = x, .conv = conv};
    return wasi_parallel(n_threads, conv->B * conv->Ho, wasi_grain(conv->Wo * conv->C), forward_lines, &job);
}

static wasi_status backward_lines(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const pool_job *job = ctx;
    WASI_PICK(wasi_max_pool_backward_lines)(job->dx, job->dy, job->kept, job->conv, begin, end);
    return WASI_OK;
}

wasi_status wasi_max_pool_backward(float *dx, const float *dy, const uint8_t *tap, const wasi_conv *conv, int n_threads)
{
    pool_job job = {.dx = dx, .dy = dy, .kept = tap, .conv = conv};
    return wasi_parallel(n_threads, conv->B * conv->H, wasi_grain(conv->W * conv->C), backward_lines, &job);
}
