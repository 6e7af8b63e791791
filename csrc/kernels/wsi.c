#include "kernels/wsi.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "common/blas.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/gemm.h"
#include "kernels/linalg_simd.h"
#include "kernels/orth.h"
#include "kernels/wsi_simd.h"

static wasi_adam adam_of(const wasi_wsi_options *o)
{
    return (wasi_adam){
        .beta1 = o->beta1,
        .beta2 = o->beta2,
        .gain1 = (1 - o->beta1) * o->grad_scale,
        .gain2 = (1 - o->beta2) * o->grad_scale * o->grad_scale,
        .correct1 = 1 / (1 - pow(o->beta1, (double)o->step)),
        .correct2 = 1 / (1 - pow(o->beta2, (double)o->step)),
        .epsilon = o->epsilon,
    };
}

#include "common/real32.h"
#include "kernels/wsi_real.h"

#include "common/real64.h"
#include "kernels/wsi_real.h"
