/* Random numbers by counter: number i of stream `seed` is a function of (seed, i) alone.
 *
 * Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): any thread may compute any
 * piece, the result is the same, there is no state and no global generator. */
#ifndef WASI_COMMON_RNG_H
#define WASI_COMMON_RNG_H

#include <stdint.h>

/* Four words from the counter's four and the key's two. */
static inline void wasi_philox(uint32_t word[4], uint64_t seed)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)word[0] * 0xD2511F53u, b = (uint64_t)word[2] * 0xCD9E8D57u;
        word[0] = (uint32_t)(b >> 32) ^ word[1] ^ k0;
        word[1] = (uint32_t)b;
        word[2] = (uint32_t)(a >> 32) ^ word[3] ^ k1;
        word[3] = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

#endif
