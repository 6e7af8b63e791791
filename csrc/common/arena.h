/* A memory region from which the arrays of a training step are served, and which remembers its peak.
 *
 * First fit by address over one reserved range: a step that asks for the same sizes in the same
 * order gets the same addresses, so after the first step no page is new. Blocks are aligned to 64
 * bytes. Thread-safe. Pages are touched only when they are used, so the range may be generous. */
#ifndef WASI_COMMON_ARENA_H
#define WASI_COMMON_ARENA_H

#include "common/status.h"

typedef struct wasi_arena wasi_arena;

typedef struct {
    size_t capacity; /* bytes reserved: an allocation that does not fit fails */
    size_t current;  /* bytes in live blocks */
    size_t peak;     /* highest `current` since the last reset */
    size_t extent;   /* highest address used since the last reset, from the start: what RSS can have grown by */
    size_t largest;  /* largest single block since the last reset */
    size_t n_blocks; /* live blocks */
    size_t n_calls;  /* allocations since the last reset */
} wasi_arena_stats;

wasi_arena *wasi_arena_new(size_t capacity); /* NULL where the range cannot be reserved */
void wasi_arena_delete(wasi_arena *arena);

void *wasi_arena_alloc(wasi_arena *arena, size_t bytes); /* NULL when full */
void wasi_arena_free(wasi_arena *arena, void *block);    /* block may be NULL */
size_t wasi_arena_block_size(const void *block);

void wasi_arena_get_stats(wasi_arena *arena, wasi_arena_stats *stats);
void wasi_arena_reset_stats(wasi_arena *arena);
/* Gives the pages of free blocks back to the system. */
void wasi_arena_trim(wasi_arena *arena);

#endif
