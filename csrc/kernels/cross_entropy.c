#include "kernels/cross_entropy.h"

#include <math.h>

#include "common/parallel.h"
#include "common/scratch.h"

typedef struct {
    double *row_loss;
    int64_t *row_correct;
    float *dlogits;
    const float *logits;
    const int64_t *targets;
    float smoothing;
    wasi_int B, V;
} job;

static void cut(wasi_scratch *s, wasi_int B, double **row_loss, int64_t **row_correct)
{
    *row_loss = wasi_take(s, (size_t)B * sizeof(double));
    *row_correct = wasi_take(s, (size_t)B * sizeof(int64_t));
}

size_t wasi_cross_entropy_work(wasi_int B)
{
    wasi_scratch s = wasi_scratch_count();
    double *row_loss;
    int64_t *row_correct;
    cut(&s, B, &row_loss, &row_correct);
    return s.used;
}

static wasi_status rows(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const job *g = ctx;
    const wasi_int V = g->V;
    const float spread = g->smoothing / (float)V, share = 1.0f / (float)g->B;
    for (wasi_int b = begin; b < end; b++) {
        const float *z = g->logits + b * V;
        wasi_int best = 0, target = (wasi_int)g->targets[b];
        double total = 0, mean = 0;
        for (wasi_int j = 1; j < V; j++)
            if (z[j] > z[best])
                best = j;
        const float top = z[best], z_target = z[target];
        for (wasi_int j = 0; j < V; j++) {
            total += expf(z[j] - top);
            mean += z[j] - top;
        }
        mean /= (double)V;
        g->row_loss[b] = log(total) - (1 - g->smoothing) * (z_target - top) - g->smoothing * mean;
        g->row_correct[b] = best == target;
        if (g->dlogits) {
            float *d = g->dlogits + b * V;
            const float inverse = (float)(1 / total);
            for (wasi_int j = 0; j < V; j++)
                d[j] = (expf(z[j] - top) * inverse - spread) * share;
            d[target] -= (1 - g->smoothing) * share;
        }
    }
    return WASI_OK;
}

wasi_status wasi_cross_entropy(double *loss, int64_t *n_correct, float *dlogits, const float *logits,
                               const int64_t *targets, float smoothing, wasi_int B, wasi_int V, void *scratch,
                               int n_threads)
{
    for (wasi_int b = 0; b < B; b++)
        if (targets[b] < 0 || targets[b] >= V)
            return WASI_ERR_RANGE;
    job g = {NULL, NULL, dlogits, logits, targets, smoothing, B, V};
    wasi_scratch s = wasi_scratch_on(scratch);
    cut(&s, B, &g.row_loss, &g.row_correct);
    WASI_TRY(wasi_parallel(n_threads, B, wasi_grain(V), rows, &g));
    double sum = 0;
    int64_t correct = 0;
    for (wasi_int b = 0; b < B; b++) {
        sum += g.row_loss[b];
        correct += g.row_correct[b];
    }
    *loss = sum / (double)B;
    *n_correct = correct;
    return WASI_OK;
}
