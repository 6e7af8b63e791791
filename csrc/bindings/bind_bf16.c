#include "bindings/tables.h"

#include "kernels/bf16.h"

/* bfloat16 numbers travel as uint16 arrays of their bits. */

static PyObject *bf16_round(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "out", NULL};
    PyObject *x_obj, *out_obj = Py_None;
    wasi_array x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:bf16_round", names, &x_obj, &out_obj) ||
        !wasi_need_f32(x_obj, -1, "x", &x))
        return NULL;
    PyArrayObject *out = wasi_out_array(out_obj, NPY_UINT16, x.ndim, x.dim, "out");
    if (out == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    Py_BEGIN_ALLOW_THREADS
    status = wasi_bf16_round(WASI_DATA(out), x.data, x.size, n_threads);
    Py_END_ALLOW_THREADS
    if (status == WASI_OK)
        return (PyObject *)out;
    Py_DECREF(out);
    return wasi_raise(status, "bf16_round");
}

static PyObject *bf16_expand(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "out", NULL};
    PyObject *x_obj, *out_obj = Py_None;
    wasi_array x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:bf16_expand", names, &x_obj, &out_obj) ||
        !wasi_need_array(x_obj, NPY_UINT16, -1, "x", &x))
        return NULL;
    PyArrayObject *out = wasi_out_array(out_obj, NPY_FLOAT32, x.ndim, x.dim, "out");
    if (out == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    Py_BEGIN_ALLOW_THREADS
    status = wasi_bf16_expand(WASI_DATA(out), x.data, x.size, n_threads);
    Py_END_ALLOW_THREADS
    if (status == WASI_OK)
        return (PyObject *)out;
    Py_DECREF(out);
    return wasi_raise(status, "bf16_expand");
}

static PyObject *bf16_add_(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sum", "x", NULL};
    PyObject *sum_obj, *x_obj;
    wasi_array sum, x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:bf16_add_", names, &sum_obj, &x_obj))
        return NULL;
    if (!wasi_need_writable(sum_obj, NPY_UINT16, -1, "sum", &sum) || !wasi_need_f32(x_obj, -1, "x", &x) ||
        !wasi_need_same_shape(&x, "x", &sum, "sum") || !wasi_need_disjoint(&sum, "sum", &x, "x"))
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    Py_BEGIN_ALLOW_THREADS
    status = wasi_bf16_add(sum.data, x.data, x.size, n_threads);
    Py_END_ALLOW_THREADS
    return status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise(status, "bf16_add_");
}

PyMethodDef wasi_bf16_methods[] = {
    WASI_METHOD("bf16_round", bf16_round, "bf16_round(x, out=None) -> x's bits as bfloat16"),
    WASI_METHOD("bf16_expand", bf16_expand, "bf16_expand(x, out=None) -> float32"),
    WASI_METHOD("bf16_add_", bf16_add_, "bf16_add_(sum, x)"),
    {NULL},
};
