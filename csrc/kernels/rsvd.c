#include "kernels/rsvd.h"

#include <math.h>
#include <string.h>

#include "common/blas.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/gemm.h"
#include "kernels/linalg_simd.h"
#include "kernels/orth.h"
#include "kernels/random_simd.h"
#include "kernels/wsi_simd.h"

enum {
    ROWS = 256,    /* rows of B in one piece of a pass that does not keep its product */
    WIDENED = 64,  /* of which so many are in float64 at a time */
    BAND = 96,     /* rows of a symmetric matrix that are stored, and multiplied, together */
    DIFF_ROWS = 64 /* rows of a difference that exist at a time */
};

/* Chebyshev's interval [0, a] is of use only where a is not negligible; elsewhere powers converge at once. */
#define SMALLEST_INTERVAL 4e-6
/* a / theta^2 with one block and with two: the second block makes up for a cut within a plateau. */
#define INTERVAL_ONE 0.7
#define INTERVAL_TWO 0.85
/* A cold start falls slowly where the squared Ritz value after the wanted ones is above so much of the first, unless the
 * Ritz values hold so much of |B'B V|^2 that the block is nearly invariant. */
#define SLOW_FALL 0.25
#define INVARIANT 0.9
/* Random numbers that fill up a deficient block, relative to its orthonormal columns. */
#define FILLING 1e-2

/* Where the band of a q x q matrix that begins at `row` lies, and at row = q where its numbers end. */
static wasi_int band_offset(wasi_int q, wasi_int row)
{
    wasi_int last = (q - 1) / BAND * BAND;
    return row < q ? row * q - row * (row - BAND) / 2 : last * q - last * (last - BAND) / 2 + (q - last) * (q - last);
}

/* Parts sum squares into their own place. */
typedef struct {
    const void *x;
    double *sums;
} norm_job;

#include "common/real32.h"
#include "kernels/rsvd_real.h"

#include "common/real64.h"
#include "kernels/rsvd_real.h"
