#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "common/arena.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/redzone.h"

/* The range is tiled by blocks, each behind a 64-byte header that names its own and its left
 * neighbour's size, so that free() finds both neighbours. Free blocks are found by walking the tiles from
 * the left: a training step has some hundred blocks, and a walk costs less than one cache miss each. */
typedef struct {
    size_t size; /* bytes of this tile, header included; a multiple of 64 */
    size_t left; /* size of the tile to the left, 0 for the first */
    size_t asked;
    size_t is_free;
    char pad[32];
} tile;

_Static_assert(sizeof(tile) == 64, "a header keeps the alignment of blocks");

struct wasi_arena {
    char *base;
    wasi_arena_stats stats;
    size_t guarded; /* bytes from the base within which red zones may lie */
    pthread_mutex_t lock;
};

static tile *right_of(const wasi_arena *a, tile *t)
{
    char *next = (char *)t + t->size;
    return next < a->base + a->stats.capacity ? (tile *)next : NULL;
}

static tile *left_of(tile *t)
{
    return t->left ? (tile *)((char *)t - t->left) : NULL;
}

/* Behind a block, to the end of its tile: forbidden, and of a known content. */
static void guard(tile *t)
{
    char *end = (char *)(t + 1) + t->asked;
    size_t room = t->size - sizeof(tile) - t->asked;
    WASI_ALLOW(t + 1, t->asked + room);
    memset(end, 0xA5, room);
    WASI_FORBID(end, room);
}

static void check_guard(tile *t)
{
    char *end = (char *)(t + 1) + t->asked;
    size_t room = t->size - sizeof(tile) - t->asked;
    WASI_ALLOW(end, room);
    for (size_t i = 0; i < room; i++) {
        if ((unsigned char)end[i] != 0xA5) {
            fprintf(stderr, "wasi: byte %zu behind an array of %zu bytes was written to\n", i, t->asked);
            abort();
        }
    }
    WASI_FORBID(t + 1, t->asked + room);
}

wasi_arena *wasi_arena_new(size_t capacity)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (capacity == 0 || capacity > SIZE_MAX / 2)
        return NULL;
    capacity = (capacity + page - 1) / page * page;
    wasi_arena *a = calloc(1, sizeof *a);
    if (a == NULL)
        return NULL;
    a->base = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a->base == MAP_FAILED) {
        free(a);
        return NULL;
    }
    a->stats.capacity = capacity;
    *(tile *)a->base = (tile){.size = capacity, .is_free = 1};
    pthread_mutex_init(&a->lock, NULL);
    return a;
}

void wasi_arena_delete(wasi_arena *a)
{
    WASI_ALLOW(a->base, a->guarded); /* no more than that: the sanitizer's record of it takes an eighth in memory */
    munmap(a->base, a->stats.capacity);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

void *wasi_arena_alloc(wasi_arena *a, size_t bytes)
{
    if (bytes > a->stats.capacity)
        return NULL;
    size_t need = sizeof(tile) + (bytes + 63) / 64 * 64 + WASI_RED_ZONE_OF_BLOCKS;
    pthread_mutex_lock(&a->lock);
    tile *t = (tile *)a->base;
    while (t != NULL && !(t->is_free && t->size >= need))
        t = right_of(a, t);
    if (t == NULL) {
        pthread_mutex_unlock(&a->lock);
        return NULL;
    }
    if (t->size >= need + sizeof(tile) + 64) { /* split: the rest stays free */
        tile *rest = (tile *)((char *)t + need);
        WASI_ALLOW(rest, sizeof *rest);
        *rest = (tile){.size = t->size - need, .left = need, .is_free = 1};
        tile *after = right_of(a, rest);
        if (after != NULL)
            after->left = rest->size;
        t->size = need;
    }
    t->is_free = 0;
    t->asked = bytes;
    if (WASI_RED_ZONE_OF_BLOCKS) {
        guard(t);
        a->guarded = WASI_MAX(a->guarded, (size_t)((char *)t - a->base) + t->size);
    }
    wasi_arena_stats *s = &a->stats;
    s->current += t->size;
    s->peak = WASI_MAX(s->peak, s->current);
    s->largest = WASI_MAX(s->largest, bytes);
    s->extent = WASI_MAX(s->extent, (size_t)((char *)t - a->base) + t->size);
    s->n_blocks++;
    s->n_calls++;
    pthread_mutex_unlock(&a->lock);
    return t + 1;
}

/* Joins t with the free tile to its right. */
static void join_right(wasi_arena *a, tile *t)
{
    tile *next = right_of(a, t);
    if (next == NULL || !next->is_free)
        return;
    t->size += next->size;
    tile *after = right_of(a, t);
    if (after != NULL)
        after->left = t->size;
}

void wasi_arena_free(wasi_arena *a, void *block)
{
    if (block == NULL)
        return;
    tile *t = (tile *)block - 1;
    pthread_mutex_lock(&a->lock);
    if (WASI_RED_ZONE_OF_BLOCKS)
        check_guard(t);
    a->stats.current -= t->size;
    a->stats.n_blocks--;
    t->is_free = 1;
    join_right(a, t);
    tile *before = left_of(t);
    if (before != NULL && before->is_free)
        join_right(a, before);
    pthread_mutex_unlock(&a->lock);
}

size_t wasi_arena_block_size(const void *block)
{
    return ((const tile *)block - 1)->asked;
}

void wasi_arena_get_stats(wasi_arena *a, wasi_arena_stats *stats)
{
    pthread_mutex_lock(&a->lock);
    *stats = a->stats;
    pthread_mutex_unlock(&a->lock);
}

void wasi_arena_reset_stats(wasi_arena *a)
{
    pthread_mutex_lock(&a->lock);
    wasi_arena_stats *s = &a->stats;
    s->peak = s->current;
    s->largest = s->extent = s->n_calls = 0;
    for (tile *t = (tile *)a->base; t != NULL; t = right_of(a, t)) {
        if (!t->is_free) {
            s->largest = WASI_MAX(s->largest, t->asked);
            s->extent = (size_t)((char *)t - a->base) + t->size;
        }
    }
    pthread_mutex_unlock(&a->lock);
}

void wasi_arena_trim(wasi_arena *a)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    pthread_mutex_lock(&a->lock);
    for (tile *t = (tile *)a->base; t != NULL; t = right_of(a, t)) {
        uintptr_t from = ((uintptr_t)(t + 1) + page - 1) / page * page;
        uintptr_t to = ((uintptr_t)t + t->size) / page * page;
        if (t->is_free && to > from)
            madvise((void *)from, to - from, MADV_DONTNEED);
    }
    pthread_mutex_unlock(&a->lock);
}
