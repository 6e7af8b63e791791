#include "kernels/cross_entropy.h"

#include <math.h>
#include <stdbool.h>

#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/cross_entropy_simd.h"

typedef struct {
    double *row_loss;
    uint8_t *row_correct;
    float *targets; /* a_j, a row for each part */
    float *dlogits;
    const float *logits;
    const int64_t *labels;
    const float *soft, *weights;
    float smoothing;
    double N;
    wasi_int V;
} loss_job;

static size_t cut(wasi_scratch *s, loss_job *job, wasi_int B, wasi_int V, int n_threads)
{
    job->row_loss = wasi_take(s, (size_t)B * sizeof(double));
    job->row_correct = wasi_take(s, (size_t)B);
    job->targets = wasi_take(s, (size_t)n_threads * V * sizeof(float));
    return s->used;
}

size_t wasi_cross_entropy_work(wasi_int B, wasi_int V, int n_threads)
{
    wasi_scratch s = wasi_scratch_count();
    loss_job job;
    return cut(&s, &job, B, V, n_threads);
}

static wasi_int first_equal(const float *x, float value, wasi_int V)
{
    wasi_int j = 0;
    while (j < V && x[j] != value)
        j++;
    return j;
}

static wasi_status loss_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const loss_job *job = ctx;
    const wasi_int V = job->V;
    const float keep = 1 - job->smoothing, spread = job->smoothing / (float)V;
    /* What labels share between rows is laid out once; without smoothing that is nothing but the target itself. */
    float *a = job->soft || spread > 0 ? job->targets + part * V : NULL;
    if (a && !job->soft)
        WASI_PICK(wasi_row_targets)(a, NULL, job->weights, 0, spread, V);
    for (wasi_int b = begin; b < end; b++) {
        const float *z = job->logits + b * V, *p = job->soft ? job->soft + b * V : NULL;
        const wasi_int target = p ? first_equal(p, WASI_PICK(wasi_row_max)(p, V), V) : (wasi_int)job->labels[b];
        const float top = WASI_PICK(wasi_row_max)(z, V);
        const bool correct = first_equal(z, top, V) == target;
        const float at_target = p ? 0 : keep * (job->weights ? job->weights[target] : 1);
        double total = 0, dot = 0;
        if (p)
            WASI_PICK(wasi_row_targets)(a, p, job->weights, keep, spread, V);
        if (a)
            WASI_PICK(wasi_row_dot)(&total, &dot, a, z, top, V);
        if (!p) {
            total += at_target;
            dot += (double)at_target * (z[target] - top);
        }
        float *d = job->dlogits ? job->dlogits + b * V : NULL;
        const double sum = WASI_PICK(wasi_row_exp)(d, z, top, V);
        job->row_loss[b] = total * log(sum) - dot;
        job->row_correct[b] = correct && !isnan(sum);
        if (d) {
            WASI_PICK(wasi_row_gradient)(d, a, (float)(total / sum / job->N), (float)(1 / job->N), V);
            if (!p)
                d[target] -= (float)(at_target / job->N);
        }
    }
    return WASI_OK;
}

wasi_status wasi_cross_entropy(double *loss, int64_t *n_correct, float *dlogits, const float *logits,
                               const int64_t *labels, const float *soft, const float *weights, float smoothing,
                               wasi_int B, wasi_int V, void *work, int n_threads)
{
    double N = 0;
    for (wasi_int b = 0; b < B; b++) {
        if (labels && (labels[b] < 0 || labels[b] >= V))
            return WASI_ERR_RANGE;
        N += labels && weights ? weights[labels[b]] : 1;
    }
    loss_job job = {.dlogits = dlogits, .logits = logits, .labels = labels, .soft = soft, .weights = weights,
                    .smoothing = smoothing, .N = N, .V = V};
    wasi_scratch s = wasi_scratch_on(work);
    cut(&s, &job, B, V, n_threads);
    WASI_TRY(wasi_parallel(n_threads, B, wasi_grain(V), loss_part, &job));
    double sum = 0;
    int64_t correct = 0;
    for (wasi_int b = 0; b < B; b++) {
        sum += job.row_loss[b];
        correct += job.row_correct[b];
    }
    *loss = sum / N;
    *n_correct = correct;
    return WASI_OK;
}
