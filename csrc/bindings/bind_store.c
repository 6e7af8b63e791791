#include "bindings/tables.h"

#include "kernels/store.h"

static PyObject *store_rows(PyObject *self, PyObject *argument)
{
    wasi_array x;
    if (!wasi_need_rows(argument, "x", &x))
        return NULL;
    npy_intp M = wasi_rows_of(&x), C = x.dim[x.ndim - 1];
    PyObject *result = NULL;
    PyArrayObject *codes = NULL, *scale = NULL, *offset = NULL;
    if ((codes = wasi_new_array(NPY_UINT8, x.ndim, x.dim)) == NULL || (scale = wasi_new_f32(1, &M)) == NULL ||
        (offset = wasi_new_f32(1, &M)) == NULL)
        goto done;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_store_rows(WASI_DATA(codes), WASI_DATA(scale), WASI_DATA(offset), x.data, M, C,
                                         n_threads));
    result = status == WASI_OK ? PyTuple_Pack(3, codes, scale, offset) : wasi_raise(status, "store_rows");
done:
    Py_XDECREF(codes);
    Py_XDECREF(scale);
    Py_XDECREF(offset);
    return result;
}

static PyObject *restore_rows(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"codes", "scale", "offset", NULL};
    PyObject *codes_obj, *scale_obj, *offset_obj;
    wasi_array codes, scale, offset;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO:restore_rows", names, &codes_obj, &scale_obj, &offset_obj) ||
        !wasi_need_array(codes_obj, NPY_UINT8, -1, "codes", &codes) || !wasi_need_f32(scale_obj, 1, "scale", &scale) ||
        !wasi_need_f32(offset_obj, 1, "offset", &offset))
        return NULL;
    if (codes.ndim == 0)
        return PyErr_Format(PyExc_ValueError, "codes: expected 1 or more dimensions, got 0");
    npy_intp M = wasi_rows_of(&codes);
    if (!wasi_need_dim(&scale, 0, M, "scale", "rows of codes") || !wasi_need_dim(&offset, 0, M, "offset", "rows of codes"))
        return NULL;
    PyArrayObject *x = wasi_new_f32(codes.ndim, codes.dim);
    if (x == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_restore_rows(WASI_DATA(x), codes.data, scale.data, offset.data, M, codes.dim[codes.ndim -
                                           1], n_threads));
    return wasi_finish(status, x, "restore_rows");
}

PyMethodDef wasi_store_methods[] = {
    {"store_rows", store_rows, METH_O, "store_rows(x) -> codes, scale, offset"},
    WASI_METHOD("restore_rows", restore_rows, "restore_rows(codes, scale, offset) -> x"),
    {NULL},
};
