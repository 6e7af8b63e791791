/* What the bindings of the decompositions share: matrices of either type, ranks, named failures. */
#ifndef WASI_BINDINGS_LINALG_H
#define WASI_BINDINGS_LINALG_H

#include "bindings/convert.h"

/* Calls the kernel's float32 or float64 twin. */
#define WASI_CALL(typenum, name, ...) ((typenum) == NPY_FLOAT32 ? wasi_s##name(__VA_ARGS__) : wasi_d##name(__VA_ARGS__))

typedef struct {
    const char *name;
    const wasi_array *array;
} wasi_named;

/* wasi_raise, with the name of the first array that holds NaN or Inf where that is what failed. */
PyObject *wasi_raise_for(wasi_status status, const char *where, const wasi_named *arrays, int n);

/* A float32 or float64 matrix that is not empty. */
int wasi_need_matrix(PyObject *object, const char *name, wasi_array *out, int *typenum);
/* rank: `largest` where it is not given, otherwise an integer in 1..largest. */
int wasi_need_rank(wasi_maybe_size given, npy_intp largest, npy_intp *rank);
/* variance: 2 (no limit) where it is not given, otherwise a number in (0, 1]. */
int wasi_need_variance(wasi_maybe_double given, double *variance);

#endif
