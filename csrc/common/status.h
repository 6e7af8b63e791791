/* Types, status codes and the conventions that every C source of wasi shares.
 *
 * A function that can fail returns a wasi_status; WASI_TRY passes a failure up. One table
 * (bindings/convert.c) turns a status into a Python exception.
 *
 * Kernels, where their header does not say otherwise: arrays are row-major, contiguous and not checked, bindings have done
 * that; parameter gradients add to what they hold, all else that is written is overwritten, and shares no memory with any
 * other argument. Kernels never allocate: see scratch.h. */
#ifndef WASI_COMMON_STATUS_H
#define WASI_COMMON_STATUS_H

#include <stddef.h>
#include <stdint.h>

typedef ptrdiff_t wasi_int; /* every size and index: pointer-wide before the first product */

typedef enum {
    WASI_OK = 0,
    WASI_ERR_NONFINITE, /* an input holds NaN or Inf: found by our scan, before LAPACK */
    WASI_ERR_OVERFLOW,  /* a size does not fit the BLAS integer */
    WASI_ERR_MEMORY,    /* the caller's allocation failed */
    WASI_ERR_LAPACK,    /* LAPACK did not converge */
    WASI_ERR_RANK,      /* a factor's rank has collapsed: its Gram matrix is singular */
    WASI_ERR_RANGE      /* an index (class label, token id) lies outside its range */
} wasi_status;

const char *wasi_status_text(wasi_status status);

#define WASI_TRY(call)                                                                             \
    do {                                                                                           \
        wasi_status wasi_try_ = (call);                                                            \
        if (wasi_try_ != WASI_OK)                                                                  \
            return wasi_try_;                                                                      \
    } while (0)

#define WASI_MIN(a, b) ((a) < (b) ? (a) : (b))
#define WASI_MAX(a, b) ((a) > (b) ? (a) : (b))

#endif
