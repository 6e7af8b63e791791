#include "kernels/orth.h"

#include <math.h>
#include <string.h>

#include "common/blas.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/linalg_simd.h"

enum { CHUNK = 128 }; /* rows (or columns) of a block in float64 at a time: what syrk and trmm do fastest */

#define COLLAPSED 1e-13 /* rcond(G) of rows that are dependent to float32 accuracy */
#define WELL_POSED 1e-7 /* rcond(G) from which |T^-1|_F^2 = tr(G^-1), an upper bound of |G^-1|, is all that is needed */

/* Threads that are worth starting on a pass over m x k with a k x k matrix. */
static int threads_for(wasi_int m, wasi_int k, int n_threads)
{
    return (double)m * (double)k * (double)k < 65536.0 ? 1 : n_threads;
}

/* Scratch: [D: k][work: 3 k][iwork: k], D the inverse square roots of G's diagonal. */
typedef struct {
    double *D, *work;
    int32_t *iwork;
} factor_scratch;

static size_t cut_factor(factor_scratch *f, wasi_scratch s, wasi_int k)
{
    f->D = wasi_take(&s, (size_t)k * sizeof(double));
    f->work = wasi_take(&s, 3 * (size_t)k * sizeof(double));
    f->iwork = wasi_take(&s, (size_t)k * sizeof(int32_t));
    return s.used;
}

size_t wasi_gram_factor_work(wasi_int k)
{
    factor_scratch f;
    return cut_factor(&f, wasi_scratch_count(), k);
}

wasi_status wasi_gram_factor(double *T, double *Tinv, double *rcond, const double *G, wasi_int k, void *scratch)
{
    factor_scratch f;
    cut_factor(&f, wasi_scratch_on(scratch), k);
    *rcond = 0;
    for (wasi_int i = 0; i < k; i++) {
        double d = G[i * k + i];
        if (!isfinite(d))
            return WASI_ERR_NONFINITE;
        if (d < 1e-280)
            return WASI_OK;
        f.D[i] = 1 / sqrt(d);
    }
    double norm = 0, inverse = 0;
    for (wasi_int i = 0; i < k; i++) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (wasi_int j = 0; j < k; j++) {
            T[i * k + j] = G[i * k + j] * f.D[i] * f.D[j];
            sum += fabs(T[i * k + j]);
        }
        norm = WASI_MAX(norm, sum);
    }
    wasi_status status = wasi_dpotrf(k, T, k);
    if (status == WASI_ERR_RANK)
        return WASI_OK;
    WASI_TRY(status);
    for (wasi_int i = 0; i < k; i++)
        memset(T + i * k, 0, (size_t)i * sizeof(double));
    memcpy(Tinv, T, (size_t)(k * k) * sizeof(double));
    WASI_TRY(wasi_dtrtri(k, Tinv, k));
    for (wasi_int i = 0; i < k; i++) {
#pragma omp simd reduction(+ : inverse)
        for (wasi_int j = i; j < k; j++)
            inverse += Tinv[i * k + j] * Tinv[i * k + j];
    }
    *rcond = 1 / (norm * inverse);
    if (!(*rcond >= WELL_POSED))
        WASI_TRY(wasi_dpocon(k, T, k, norm, rcond, f.work, f.iwork));
    for (wasi_int i = 0; i < k; i++)
        for (wasi_int j = i; j < k; j++) {
            T[i * k + j] /= f.D[j];
            Tinv[i * k + j] *= f.D[i];
        }
    return WASI_OK;
}

#include "common/real32.h"
#include "kernels/orth_real.h"

#include "common/real64.h"
#include "kernels/orth_real.h"
