/* The functions of a NumPy memory handler (PyDataMemAllocator): allocation number `fails` (from 0; -1: none) is refused.
 * `live` counts blocks that are allocated. One thread at a time. */
#include <stdlib.h>

long fails = -1, asked = 0, live = 0;

static void *counted(void *block)
{
    live += block != NULL;
    return block;
}

static int refused(void)
{
    return asked++ == fails;
}

void *failing_malloc(void *ctx, size_t size)
{
    (void)ctx;
    return refused() ? NULL : counted(malloc(size ? size : 1));
}

void *failing_calloc(void *ctx, size_t n, size_t size)
{
    (void)ctx;
    return refused() ? NULL : counted(calloc(n ? n : 1, size ? size : 1));
}

void *failing_realloc(void *ctx, void *block, size_t size)
{
    (void)ctx;
    return refused() ? NULL : block ? realloc(block, size ? size : 1) : counted(malloc(size ? size : 1));
}

void failing_free(void *ctx, void *block, size_t size)
{
    (void)ctx, (void)size;
    live -= block != NULL;
    free(block);
}
