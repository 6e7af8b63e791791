/* One block of scratch memory, cut into 64-byte-aligned pieces.
 *
 * A kernel f() that needs scratch has a twin f_work() that returns its bytes; the caller passes one
 * block of at least that size, `work` (`scratch` where work is what LAPACK wants). Both go through the
 * same cuts, so they cannot disagree:
 *
 *     wasi_scratch s = wasi_scratch_on(block);     or wasi_scratch_count() in f_work()
 *     float *a = wasi_take(&s, m * k * sizeof(float));
 *     ...
 *     return s.used;                               in f_work()
 */
#ifndef WASI_COMMON_SCRATCH_H
#define WASI_COMMON_SCRATCH_H

#include "common/redzone.h"
#include "common/status.h"

typedef struct {
    char *base; /* NULL while counting */
    size_t used;
} wasi_scratch;

static inline wasi_scratch wasi_scratch_on(void *block)
{
    /* Round the start up; wasi_scratch_count reserves the bytes that this may skip. */
    size_t skip = (size_t)(-(intptr_t)block & 63);
    return (wasi_scratch){(char *)block + skip, 0};
}

static inline wasi_scratch wasi_scratch_count(void)
{
    return (wasi_scratch){NULL, 64};
}

static inline void *wasi_take(wasi_scratch *s, size_t bytes)
{
    char *piece = s->base ? s->base + s->used : NULL;
    size_t room = ((bytes + 63) & ~(size_t)63) + WASI_RED_ZONE_OF_PIECES;
    if (piece != NULL && WASI_RED_ZONE_OF_PIECES) {
        WASI_ALLOW(piece, bytes);
        WASI_FORBID(piece + bytes, room - bytes);
    }
    s->used += room;
    return piece;
}

/* Pieces that are cut from copies of one wasi_scratch share memory. To be called where some of them, which lie from `first` to
 * `end`, are taken up after others: lifts the red zones that those left there. */
static inline void wasi_reuse(void *first, void *end)
{
    if (WASI_RED_ZONE_OF_PIECES)
        WASI_ALLOW(first, (size_t)((char *)end - (char *)first));
}

#endif
