/* Bytes that nobody may touch, between the pieces of scratch memory and behind the blocks of an arena.
 *
 * In builds with AddressSanitizer (WASI_SANITIZE=address) touching them ends the process with a report of the
 * line. In builds with WASI_DEBUG=1 alone an arena looks, when a block is freed, whether its red zone was
 * written to. In others there are none. */
#ifndef WASI_COMMON_REDZONE_H
#define WASI_COMMON_REDZONE_H

#include <stddef.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define WASI_FORBID(from, bytes) __asan_poison_memory_region(from, bytes)
#define WASI_ALLOW(from, bytes) __asan_unpoison_memory_region(from, bytes)
#else
#define WASI_FORBID(from, bytes) ((void)(from), (void)(bytes))
#define WASI_ALLOW(from, bytes) ((void)(from), (void)(bytes))
#endif

enum {
#ifdef __SANITIZE_ADDRESS__
    WASI_RED_ZONE_OF_PIECES = 64,
#else
    WASI_RED_ZONE_OF_PIECES = 0,
#endif
#ifdef WASI_DEBUG
    WASI_RED_ZONE_OF_BLOCKS = 64
#else
    WASI_RED_ZONE_OF_BLOCKS = 0
#endif
};

#endif
