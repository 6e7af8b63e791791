/* What every binding shares: argument checks that name the argument, allocation, status to exception.
 *
 * A binding has five steps: parse, check, allocate, release the GIL for exactly one kernel call,
 * turn the status into a result. Owned pointers start NULL and one `done:` label frees them. */
#ifndef WASI_BINDINGS_CONVERT_H
#define WASI_BINDINGS_CONVERT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

#define PY_ARRAY_UNIQUE_SYMBOL wasi_numpy_api
#ifndef WASI_IMPORTS_NUMPY /* bindings/module.c alone holds the API table */
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>
#undef I /* <complex.h>, which NumPy includes, takes the name of our input width */

#include "common/parallel.h"
#include "common/status.h"

#define WASI_MAX_DIMS 8

/* The array behind a Python argument. `data` is borrowed from `object`, which the caller's tuple holds. */
typedef struct {
    PyArrayObject *object;
    void *data;
    int ndim;
    npy_intp dim[WASI_MAX_DIMS];
    npy_intp size; /* number of elements */
} wasi_array;

/* Converters for "O&" of PyArg_ParseTupleAndKeywords, for arguments that may be None. Turning an object into a number may
 * run Python code, which could resize an array: so it is done while arguments are parsed, before any array is looked at.
 * They keep what a variable was initialised with where None is given. */
typedef struct {
    bool given;
    double value;
} wasi_maybe_double;
typedef struct {
    bool given;
    Py_ssize_t value;
} wasi_maybe_size;
int wasi_as_double(PyObject *object, void *maybe_double);
int wasi_as_size(PyObject *object, void *maybe_size);

/* Refuses a number that is not `ok`: "name: expected E, got G". */
int wasi_need_number(int ok, const char *name, const char *expected, double got);

/* Checks that `object` is an aligned, C-contiguous, native NumPy array of the type with `ndim` dimensions
 * (-1: any up to WASI_MAX_DIMS). On failure sets an exception that names the argument and says what was
 * expected and what came, and returns false. Nothing is ever converted or copied. */
int wasi_need_array(PyObject *object, int typenum, int ndim, const char *name, wasi_array *out);
#define wasi_need_f32(object, ndim, name, out) wasi_need_array(object, NPY_FLOAT32, ndim, name, out)
/* float32 or float64; `typenum` receives which. */
int wasi_need_real(PyObject *object, int ndim, const char *name, wasi_array *out, int *typenum);
/* The same for an argument that may be None: then `out->object` and `out->data` are NULL. */
int wasi_maybe_array(PyObject *object, int typenum, int ndim, const char *name, wasi_array *out);
/* ... and for one that is written to: read-only arrays are refused. */
int wasi_need_writable(PyObject *object, int typenum, int ndim, const char *name, wasi_array *out);

/* Checks `array->dim[axis] == expected`; the message says "name.shape[axis]: expected E (why), got G". */
int wasi_need_dim(const wasi_array *array, int axis, npy_intp expected, const char *name, const char *why);
/* Checks that `a` has the shape of `b`. */
int wasi_need_same_shape(const wasi_array *a, const char *a_name, const wasi_array *b, const char *b_name);
/* Refuses arrays that share memory where a kernel must not alias: each of the first `n_written` operands against all others.
 * What is no array is passed over. */
typedef struct {
    const char *name;
    PyObject *object;
} wasi_operand;
int wasi_need_apart(int n_written, const wasi_operand *operands, int n);
#define WASI_NEED_APART(n_written, ...)                      \
    wasi_need_apart(n_written, (wasi_operand[]){__VA_ARGS__}, \
                    (int)(sizeof((wasi_operand[]){__VA_ARGS__}) / sizeof(wasi_operand)))
/* For elementwise kernels: `out` may be the very memory of `in`, but must not overlap it in any other way.
 * `in` may be absent. */
int wasi_need_in_place(PyArrayObject *out, const char *out_name, const wasi_array *in, const char *in_name);

/* Arrays of rows: any number of leading dimensions, then one of width; a float32 array of at least 1 dimension. */
int wasi_need_rows(PyObject *object, const char *name, wasi_array *out);
npy_intp wasi_rows_of(const wasi_array *x); /* the product of every dimension but the last */
int wasi_need_same_rows(const wasi_array *x, npy_intp M, const char *name);
void wasi_like_rows(const wasi_array *x, npy_intp last, npy_intp *dims); /* x's leading dimensions, then `last` */
/* A number a channel: a float32 array of the length of x's last dimension. */
int wasi_need_channels(PyObject *object, const char *name, const wasi_array *x, wasi_array *out);

/* Parameter gradients, which are added to and may be None: of `like`'s shape, of a number a channel of x, of n numbers. */
int wasi_maybe_sums_like(PyObject *object, const char *name, const wasi_array *like, const char *like_name, wasi_array *out);
int wasi_maybe_channel_sums(PyObject *object, const char *name, const wasi_array *x, wasi_array *out);
int wasi_maybe_sums(PyObject *object, const char *name, npy_intp n, const char *why, wasi_array *out);

/* A new uninitialised array (of the current NumPy memory handler, so an active wasi.Arena serves it). */
PyArrayObject *wasi_new_array(int typenum, int ndim, const npy_intp *dims);
#define wasi_new_f32(ndim, dims) wasi_new_array(NPY_FLOAT32, ndim, dims)
/* A block of scratch memory that dies with its reference. */
PyArrayObject *wasi_new_scratch(size_t bytes);
/* `out` if it is given and fits (dtype, shape, writable), else a new array. A new reference or NULL. */
PyArrayObject *wasi_out_array(PyObject *out, int typenum, int ndim, const npy_intp *dims, const char *name);
/* The same, called "out", for a float32 result of x's shape that elementwise kernels make of x and y (which may be NULL). */
PyArrayObject *wasi_out_in_place(PyObject *out, const wasi_array *x, const char *x_name, const wasi_array *y,
                                 const char *y_name);

/* Executes a statement, the one kernel call of a binding, without the interpreter's lock. */
#define WASI_NO_GIL(...)       \
    do {                       \
        Py_BEGIN_ALLOW_THREADS \
        __VA_ARGS__;           \
        Py_END_ALLOW_THREADS   \
    } while (0)

/* Sets the exception for a status; `where` names the operation. Returns NULL for convenience. */
PyObject *wasi_raise(wasi_status status, const char *where);
/* The exception for WASI_ERR_RANGE: names the first of the int64 `indices` that is not below `limit`; `what` they are. */
PyObject *wasi_raise_index(const wasi_array *indices, npy_intp limit, const char *name, const char *what);
/* Gives `result` away where the status is WASI_OK, else drops it and sets the exception. */
PyObject *wasi_finish(wasi_status status, PyArrayObject *result, const char *where);

#define WASI_DATA(array) PyArray_DATA(array)

#endif
