/* Elementwise passes of the WSI step (wsi.c), for float32 (s) and float64 (d). */
#ifndef WASI_KERNELS_WSI_SIMD_H
#define WASI_KERNELS_WSI_SIMD_H

#include "common/isa.h"
#include "common/status.h"

/* out = a x + b y + c z; out may be any of the inputs. */
WASI_SIMD_DECLARE(void, wasi_scombine,
                  (float *out, double a, const float *x, double b, const float *y, double c, const float *z,
                   wasi_int n));
WASI_SIMD_DECLARE(void, wasi_dcombine,
                  (double *out, double a, const double *x, double b, const double *y, double c, const double *z,
                   wasi_int n));

/* Adam's coefficients for one step: m' = beta1 m + gain1 g, v' = beta2 v + gain2 g^2, with gain1 = (1 - beta1) scale
 * and gain2 = (1 - beta2) scale^2 for the gradient's scale; the direction is
 * u = correct1 m' / (sqrt(correct2 v') + epsilon), correct = 1 / (1 - beta^step). */
typedef struct {
    double beta1, beta2, gain1, gain2, correct1, correct2, epsilon;
} wasi_adam;

/* The direction alone, and the moments alone. */
WASI_SIMD_DECLARE(void, wasi_sadam_direction,
                  (float *u, const float *m, const float *v, const float *g, const wasi_adam *adam, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_dadam_direction,
                  (double *u, const double *m, const double *v, const double *g, const wasi_adam *adam, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_sadam_moments,
                  (float *m, float *v, const float *g, const wasi_adam *adam, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_dadam_moments,
                  (double *m, double *v, const double *g, const wasi_adam *adam, wasi_int n));

#endif
