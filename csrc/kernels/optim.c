#include "kernels/optim.h"

#include <math.h>

#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/elementwise.h"
#include "kernels/linalg_simd.h"
#include "kernels/optim_simd.h"

enum { CHUNK = 16384 }; /* elements: the unit that threads are given, and that sums are taken over */

typedef struct {
    float *param, *buffer;
    const float *grad;
    wasi_sgd_options o;
} sgd_job;

static wasi_status sgd_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const sgd_job *g = ctx;
    WASI_PICK(wasi_sgd_span)(g->param + begin, g->buffer ? g->buffer + begin : NULL, g->grad + begin, g->o,
                             end - begin);
    return WASI_OK;
}

wasi_status wasi_sgd_update(float *param, float *buffer, const float *grad, float lr, float momentum,
                            float weight_decay, bool nesterov, float grad_scale, wasi_int n, int n_threads)
{
    wasi_sgd_options o = {.lr = lr, .momentum = momentum, .weight_decay = weight_decay, .grad_scale = grad_scale,
                          .nesterov = nesterov};
    sgd_job g = {param, buffer, grad, o};
    return wasi_parallel(n_threads, n, CHUNK, sgd_part, &g);
}

typedef struct {
    float *param, *m, *v;
    const float *grad;
    wasi_adamw_options o;
} adamw_job;

static wasi_status adamw_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const adamw_job *g = ctx;
    WASI_PICK(wasi_adamw_span)(g->param + begin, g->m + begin, g->v + begin, g->grad + begin, g->o, end - begin);
    return WASI_OK;
}

wasi_status wasi_adamw_update(float *param, float *m, float *v, const float *grad, double lr, double beta1,
                              double beta2, double eps, double weight_decay, int64_t step, float grad_scale,
                              wasi_int n, int n_threads)
{
    wasi_adamw_options o = {
        .decay = (float)(1 - lr * weight_decay),
        .beta1 = (float)beta1,
        .rest1 = (float)(1 - beta1),
        .beta2 = (float)beta2,
        .rest2 = (float)(1 - beta2),
        .step_size = (float)(lr / (1 - pow(beta1, (double)step))),
        .v_scale = (float)(1 / sqrt(1 - pow(beta2, (double)step))),
        .eps = (float)eps,
        .grad_scale = grad_scale,
    };
    adamw_job g = {param, m, v, grad, o};
    return wasi_parallel(n_threads, n, CHUNK, adamw_part, &g);
}

typedef struct {
    double *sums; /* one a chunk */
    const float *x;
} squares_job;

static wasi_status squares_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const squares_job *g = ctx;
    for (wasi_int i = begin; i < end; i += CHUNK)
        g->sums[i / CHUNK] = WASI_PICK(wasi_ssum_squares)(g->x + i, WASI_MIN(CHUNK, end - i));
    return WASI_OK;
}

size_t wasi_sum_of_squares_work(wasi_int n)
{
    wasi_scratch s = wasi_scratch_count();
    wasi_take(&s, (size_t)(n / CHUNK + 1) * sizeof(double));
    return s.used;
}

wasi_status wasi_sum_of_squares(double *sum, const float *x, wasi_int n, void *scratch, int n_threads)
{
    wasi_scratch s = wasi_scratch_on(scratch);
    squares_job g = {wasi_take(&s, (size_t)(n / CHUNK + 1) * sizeof(double)), x};
    WASI_TRY(wasi_parallel(n_threads, n, CHUNK, squares_part, &g));
    *sum = 0;
    for (wasi_int i = 0; i * CHUNK < n; i++)
        *sum += g.sums[i];
    return WASI_OK;
}

static wasi_status finite_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const float *x = ctx;
    return WASI_PICK(wasi_sall_finite)(x + begin, end - begin) ? WASI_OK : WASI_ERR_NONFINITE;
}

wasi_status wasi_all_finite(const float *x, wasi_int n, int n_threads)
{
    return wasi_parallel(n_threads, n, CHUNK, finite_part, (void *)(uintptr_t)x);
}

wasi_status wasi_add(float *y, const float *x1, const float *x2, wasi_int n, int n_threads)
{
    return wasi_map2(y, x1, x2, WASI_PICK(wasi_add_span), n, n_threads);
}

typedef struct {
    float *y;
    const float *x;
    float a;
} vector_job;

static wasi_status scale_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const vector_job *g = ctx;
    WASI_PICK(wasi_scale_span)(g->y + begin, g->a, end - begin);
    return WASI_OK;
}

wasi_status wasi_scale(float *x, float a, wasi_int n, int n_threads)
{
    vector_job g = {.y = x, .a = a};
    return wasi_parallel(n_threads, n, CHUNK, scale_part, &g);
}

static wasi_status axpy_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const vector_job *g = ctx;
    WASI_PICK(wasi_axpy_span)(g->y + begin, g->a, g->x + begin, end - begin);
    return WASI_OK;
}

wasi_status wasi_axpy(float *y, float a, const float *x, wasi_int n, int n_threads)
{
    vector_job g = {.y = y, .x = x, .a = a};
    return wasi_parallel(n_threads, n, CHUNK, axpy_part, &g);
}
