#include "kernels/elementwise.h"

#include "common/parallel.h"

typedef struct {
    float *y;
    const float *x1, *x2;
    wasi_map_loop loop;
    wasi_map2_loop loop2;
} map_job;

static wasi_status map_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const map_job *job = ctx;
    job->loop(job->y + begin, job->x1 + begin, end - begin);
    return WASI_OK;
}

wasi_status wasi_map(float *y, const float *x, wasi_map_loop loop, wasi_int n, int n_threads)
{
    map_job job = {.y = y, .x1 = x, .loop = loop};
    return wasi_parallel(n_threads, n, wasi_grain(1), map_part, &job);
}

static wasi_status map2_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const map_job *job = ctx;
    job->loop2(job->y + begin, job->x1 + begin, job->x2 + begin, end - begin);
    return WASI_OK;
}

wasi_status wasi_map2(float *y, const float *x1, const float *x2, wasi_map2_loop loop, wasi_int n, int n_threads)
{
    map_job job = {.y = y, .x1 = x1, .x2 = x2, .loop2 = loop};
    return wasi_parallel(n_threads, n, wasi_grain(1), map2_part, &job);
}
