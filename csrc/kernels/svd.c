#include "kernels/svd.h"

#include <math.h>
#include <string.h>

#include "common/blas.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/gemm.h"
#include "kernels/linalg_simd.h"
#include "kernels/orth.h"

enum { WIDEN_ROWS = 64 }; /* rows of W that are widened to float64 at a time */

#include "common/real32.h"
#include "kernels/svd_real.h"

#include "common/real64.h"
#include "kernels/svd_real.h"
