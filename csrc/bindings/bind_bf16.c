#include "bindings/tables.h"

#include "kernels/bf16.h"
#include "kernels/bf16_linear.h"
#include "kernels/bgemm.h"

/* bfloat16 numbers travel as uint16 arrays of their bits. */

/* x rounded to bfloat16, or expanded from it. */
static PyObject *bf16_convert(PyObject *args, PyObject *kwargs, const char *format, const char *where, int expand)
{
    static char *names[] = {"x", "out", NULL};
    PyObject *x_obj, *out_obj = Py_None;
    wasi_array x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &x_obj, &out_obj) ||
        !wasi_need_array(x_obj, expand ? NPY_UINT16 : NPY_FLOAT32, -1, "x", &x) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"x", x_obj}))
        return NULL;
    PyArrayObject *out = wasi_out_array(out_obj, expand ? NPY_FLOAT32 : NPY_UINT16, x.ndim, x.dim, "out");
    if (out == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    if (expand)
        WASI_NO_GIL(status = wasi_bf16_expand(WASI_DATA(out), x.data, x.size, n_threads));
    else
        WASI_NO_GIL(status = wasi_bf16_round(WASI_DATA(out), x.data, x.size, n_threads));
    return wasi_finish(status, out, where);
}

static PyObject *bf16_round(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return bf16_convert(args, kwargs, "O|O:bf16_round", "bf16_round", 0);
}

static PyObject *bf16_expand(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return bf16_convert(args, kwargs, "O|O:bf16_expand", "bf16_expand", 1);
}

static PyObject *bf16_add_(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"sum", "x", NULL};
    PyObject *sum_obj, *x_obj;
    wasi_array sum, x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:bf16_add_", names, &sum_obj, &x_obj))
        return NULL;
    if (!wasi_need_writable(sum_obj, NPY_UINT16, -1, "sum", &sum) || !wasi_need_f32(x_obj, -1, "x", &x) ||
        !wasi_need_same_shape(&x, "x", &sum, "sum") || !WASI_NEED_APART(1, {"sum", sum_obj}, {"x", x_obj}))
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_bf16_add(sum.data, x.data, x.size, n_threads));
    return status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise(status, "bf16_add_");
}

/* x or dy with its rows, W, and the result's array for y (forward) or dx. */
static PyObject *bf16_product(PyObject *args, PyObject *kwargs, const char *format, const char *where, int forward)
{
    static char *forward_names[] = {"x", "W", "out", NULL}, *backward_names[] = {"dy", "W", "out", NULL};
    PyObject *in_obj, *W_obj, *out_obj = Py_None, *result = NULL;
    wasi_array in, W;
    const char *name = forward ? "x" : "dy";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, forward ? forward_names : backward_names, &in_obj, &W_obj,
                                     &out_obj))
        return NULL;
    if (!wasi_need_rows(in_obj, name, &in) || !wasi_need_array(W_obj, NPY_UINT16, 2, "W", &W) ||
        !wasi_need_dim(&in, in.ndim - 1, W.dim[forward], name, forward ? "W.shape[1]" : "W.shape[0]") ||
        !WASI_NEED_APART(1, {"out", out_obj}, {name, in_obj}, {"W", W_obj}))
        return NULL;

    npy_intp dims[WASI_MAX_DIMS];
    PyArrayObject *out = NULL, *work = NULL;
    int n_threads = wasi_get_num_threads();
    bool rounded = wasi_bgemm_chosen();
    wasi_like_rows(&in, W.dim[!forward], dims);
    if ((out = wasi_out_array(out_obj, NPY_FLOAT32, in.ndim, dims, "out")) == NULL ||
        (work = wasi_new_scratch(wasi_bf16_linear_work(wasi_rows_of(&in), W.dim[0], W.dim[1], rounded, n_threads))) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = (forward ? wasi_bf16_linear_forward : wasi_bf16_linear_backward)(
                    WASI_DATA(out), in.data, W.data, wasi_rows_of(&in), W.dim[0], W.dim[1], rounded, WASI_DATA(work),
                    n_threads));
    result = status == WASI_OK ? Py_NewRef(out) : wasi_raise(status, where);
done:
    Py_XDECREF(out);
    Py_XDECREF(work);
    return result;
}

static PyObject *bf16_linear_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return bf16_product(args, kwargs, "OO|O:bf16_linear_forward", "bf16_linear_forward", 1);
}

static PyObject *bf16_linear_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return bf16_product(args, kwargs, "OO|O:bf16_linear_backward", "bf16_linear_backward", 0);
}

PyMethodDef wasi_bf16_methods[] = {
    WASI_METHOD("bf16_round", bf16_round, "bf16_round(x, out=None) -> x's bits as bfloat16"),
    WASI_METHOD("bf16_expand", bf16_expand, "bf16_expand(x, out=None) -> float32"),
    WASI_METHOD("bf16_add_", bf16_add_, "bf16_add_(sum, x)"),
    WASI_METHOD("bf16_linear_forward", bf16_linear_forward, "bf16_linear_forward(x, W, out=None) -> y"),
    WASI_METHOD("bf16_linear_backward", bf16_linear_backward, "bf16_linear_backward(dy, W, out=None) -> dx"),
    {NULL},
};
