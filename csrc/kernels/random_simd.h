/* Arrays of random numbers (common/rng.h). */
#ifndef WASI_KERNELS_RANDOM_SIMD_H
#define WASI_KERNELS_RANDOM_SIMD_H

#include "common/isa.h"
#include "common/status.h"

/* Standard normal numbers by Box and Muller's transform, 24 bits of randomness each, |x| < 5.8. Equal seeds give equal
 * numbers whatever the length: a shorter array is the head of a longer one. */
WASI_SIMD_DECLARE(void, wasi_snormal, (float *out, uint64_t seed, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_dnormal, (double *out, uint64_t seed, wasi_int n));

#endif
