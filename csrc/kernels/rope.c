#include "kernels/rope.h"

#include "common/parallel.h"
#include "kernels/rope_simd.h"

typedef struct {
    float *x;
    const float *cosines, *sines;
    float turn;
    wasi_int N, H, half;
} rope_job;

static wasi_status rope_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const rope_job *job = ctx;
    for (wasi_int m = begin; m < end; m++) {
        wasi_int row = m % job->N * job->half;
        WASI_PICK(wasi_rope_token)(job->x + m * job->H * 2 * job->half, job->cosines + row, job->sines + row, job->turn,
                                   job->H, job->half);
    }
    return WASI_OK;
}

wasi_status wasi_rope(float *x, const float *cosines, const float *sines, wasi_int start, bool back, wasi_int B,
                      wasi_int N, wasi_int H, wasi_int D, int n_threads)
{
    wasi_int half = D / 2;
    rope_job job = {x, cosines + start * half, sines + start * half, back ? -1.0f : 1.0f, N, H, half};
    return wasi_parallel(n_threads, B * N, wasi_grain(H * D), rope_part, &job);
}
