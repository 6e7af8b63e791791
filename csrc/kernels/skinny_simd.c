#include "kernels/skinny_simd.h"

#include <stdbool.h>

#define INLINE static inline __attribute__((always_inline))

/* Tiles that fill the registers: STRIPS vectors of A's row by up to MOST rows of V; ROWS rows of A by COLUMNS of V. */
#if defined(WASI_ISA_AVX512)
enum { VECTOR_BYTES = 64, STRIPS = 4, MOST = 6, ROWS = 4, COLUMNS = 6 };
#elif defined(WASI_ISA_AVX2)
enum { VECTOR_BYTES = 32, STRIPS = 2, MOST = 6, ROWS = 3, COLUMNS = 4 };
#else
enum { VECTOR_BYTES = 16, STRIPS = 2, MOST = 6, ROWS = 3, COLUMNS = 4 };
#endif

#include "common/real32.h"
#include "kernels/skinny_simd_real.h"

#include "common/real64.h"
#include "kernels/skinny_simd_real.h"
