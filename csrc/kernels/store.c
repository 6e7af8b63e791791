#include "kernels/store.h"

#include "common/parallel.h"
#include "kernels/store_simd.h"

typedef struct {
    uint8_t *codes;
    float *scale, *offset, *x;
    const uint8_t *in_codes;
    const float *in_scale, *in_offset, *in_x;
    wasi_int C;
} store_job;

static wasi_status store_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const store_job *j = ctx;
    WASI_PICK(wasi_store_span)(j->codes + begin * j->C, j->scale + begin, j->offset + begin, j->in_x + begin * j->C, end - begin,
                               j->C);
    return WASI_OK;
}

wasi_status wasi_store_rows(uint8_t *codes, float *scale, float *offset, const float *x, wasi_int M, wasi_int C, int n_threads)
{
    store_job job = {.codes = codes, .scale = scale, .offset = offset, .in_x = x, .C = C};
    return wasi_parallel(n_threads, M, wasi_grain(C), store_part, &job);
}

static wasi_status restore_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const store_job *j = ctx;
    WASI_PICK(wasi_restore_span)(j->x + begin * j->C, j->in_codes + begin * j->C, j->in_scale + begin, j->in_offset + begin,
                                 end - begin, j->C);
    return WASI_OK;
}

wasi_status wasi_restore_rows(float *x, const uint8_t *codes, const float *scale, const float *offset, wasi_int M, wasi_int C,
                              int n_threads)
{
    store_job job = {.x = x, .in_codes = codes, .in_scale = scale, .in_offset = offset, .C = C};
    return wasi_parallel(n_threads, M, wasi_grain(C), restore_part, &job);
}
