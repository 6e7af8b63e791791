#include "kernels/store.h"

#include "common/parallel.h"
#include "kernels/store_simd.h"

typedef struct {
    uint8_t *codes;
    float *scale, *offset;
    const float *x;
    wasi_int C;
} store_job;

static wasi_status store_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const store_job *j = ctx;
    wasi_int at = begin * j->C;
    WASI_PICK(wasi_store_span)(j->codes + at, j->scale + begin, j->offset + begin, j->x + at, end - begin, j->C);
    return WASI_OK;
}

wasi_status wasi_store_rows(uint8_t *codes, float *scale, float *offset, const float *x, wasi_int M, wasi_int C,
                            int n_threads)
{
    store_job job = {codes, scale, offset, x, C};
    return wasi_parallel(n_threads, M, wasi_grain(C), store_part, &job);
}

typedef struct {
    float *x;
    const uint8_t *codes;
    const float *scale, *offset;
    wasi_int C;
} restore_job;

static wasi_status restore_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const restore_job *j = ctx;
    wasi_int at = begin * j->C;
    WASI_PICK(wasi_restore_span)(j->x + at, j->codes + at, j->scale + begin, j->offset + begin, end - begin, j->C);
    return WASI_OK;
}

wasi_status wasi_restore_rows(float *x, const uint8_t *codes, const float *scale, const float *offset, wasi_int M, wasi_int C,
                              int n_threads)
{
    restore_job job = {x, codes, scale, offset, C};
    return wasi_parallel(n_threads, M, wasi_grain(C), restore_part, &job);
}
