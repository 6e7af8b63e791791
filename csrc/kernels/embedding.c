#include "kernels/embedding.h"

#include <stdbool.h>
#include <string.h>

#include "common/parallel.h"

typedef struct {
    float *out;
    const float *in;
    const int64_t *t;
    wasi_int M, C;
} embedding_job;

static bool in_range(const int64_t *t, wasi_int M, wasi_int V)
{
    for (wasi_int m = 0; m < M; m++)
        if (t[m] < 0 || t[m] >= V)
            return false;
    return true;
}

static wasi_status gather_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const embedding_job *job = ctx;
    for (wasi_int m = begin; m < end; m++)
        memcpy(job->out + m * job->C, job->in + (wasi_int)job->t[m] * job->C, (size_t)job->C * sizeof(float));
    return WASI_OK;
}

wasi_status wasi_embedding_forward(float *y, const int64_t *t, const float *T, wasi_int M, wasi_int V, wasi_int C,
                                   int n_threads)
{
    if (!in_range(t, M, V))
        return WASI_ERR_RANGE;
    embedding_job job = {y, T, t, M, C};
    return wasi_parallel(n_threads, M, wasi_grain(C), gather_part, &job);
}

static wasi_status scatter_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const embedding_job *job = ctx;
    for (wasi_int m = 0; m < job->M; m++) {
        float *row = job->out + (wasi_int)job->t[m] * job->C;
        const float *dy = job->in + m * job->C;
        for (wasi_int c = begin; c < end; c++)
            row[c] += dy[c];
    }
    return WASI_OK;
}

wasi_status wasi_embedding_backward(float *dT, const float *dy, const int64_t *t, wasi_int M, wasi_int V, wasi_int C,
                                    int n_threads)
{
    if (!in_range(t, M, V))
        return WASI_ERR_RANGE;
    embedding_job job = {dT, dy, t, M, C};
    return wasi_parallel(n_threads, C, 64, scatter_part, &job);
}
