#include "bindings/tables.h"

#include "kernels/batchnorm.h"

static int need_width(const wasi_array *x)
{
    if (x->dim[x->ndim - 1] > 0)
        return 1;
    PyErr_Format(PyExc_ValueError, "x.shape[%d]: expected at least 1 channel, got 0", x->ndim - 1);
    return 0;
}

static PyObject *batch_norm_statistics(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", NULL};
    PyObject *x_obj, *result = NULL;
    wasi_array x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:batch_norm_statistics", names, &x_obj) ||
        !wasi_need_rows(x_obj, "x", &x) || !need_width(&x))
        return NULL;
    npy_intp M = wasi_rows_of(&x), C = x.dim[x.ndim - 1];
    if (M < 1) {
        PyErr_SetString(PyExc_ValueError, "x: expected at least 1 row to take the mean of, got 0");
        return NULL;
    }
    PyArrayObject *mean = NULL, *var = NULL, *work = NULL;
    int n_threads = wasi_get_num_threads();
    if ((mean = wasi_new_f32(1, &C)) == NULL || (var = wasi_new_f32(1, &C)) == NULL ||
        (work = wasi_new_scratch(wasi_batch_norm_work(C, n_threads))) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = wasi_batch_norm_statistics(WASI_DATA(mean), WASI_DATA(var), x.data, M, C, WASI_DATA(work),
                                                    n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, mean, var) : wasi_raise(status, "batch_norm_statistics");
done:
    Py_XDECREF(mean);
    Py_XDECREF(var);
    Py_XDECREF(work);
    return result;
}

static PyObject *batch_norm_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "mean", "rstd", "weight", "bias", "r", "relu", "need_mask", "out", NULL};
    PyObject *x_obj, *mean_obj, *rstd_obj, *w_obj, *b_obj, *r_obj = Py_None, *out_obj = Py_None, *result = NULL;
    int relu = 0, need_mask = 0;
    wasi_array x, mean, rstd, w, b, r;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO|OppO:batch_norm_forward", names, &x_obj, &mean_obj, &rstd_obj,
                                     &w_obj, &b_obj, &r_obj, &relu, &need_mask, &out_obj))
        return NULL;
    if (!wasi_need_rows(x_obj, "x", &x) || !need_width(&x) || !wasi_need_channels(mean_obj, "mean", &x, &mean) ||
        !wasi_need_channels(rstd_obj, "rstd", &x, &rstd) || !wasi_need_channels(w_obj, "weight", &x, &w) ||
        !wasi_need_channels(b_obj, "bias", &x, &b) || !wasi_maybe_array(r_obj, NPY_FLOAT32, -1, "r", &r) ||
        (r.data && !wasi_need_same_shape(&r, "r", &x, "x")) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"mean", mean_obj}, {"rstd", rstd_obj}, {"weight", w_obj}, {"bias", b_obj}))
        return NULL;

    PyArrayObject *y = NULL, *mask = NULL;
    npy_intp bytes = (x.size + 7) / 8;
    if ((y = wasi_out_in_place(out_obj, &x, "x", &r, "r")) == NULL ||
        (need_mask && (mask = wasi_new_array(NPY_UINT8, 1, &bytes)) == NULL))
        goto done;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_batch_norm_forward(WASI_DATA(y), mask ? WASI_DATA(mask) : NULL, x.data, r.data, mean.data,
                                                 rstd.data, w.data, b.data, relu, wasi_rows_of(&x), w.dim[0],
                                                 n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, y, mask ? (PyObject *)mask : Py_None)
                               : wasi_raise(status, "batch_norm_forward");
done:
    Py_XDECREF(y);
    Py_XDECREF(mask);
    return result;
}

static PyObject *batch_norm_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "x", "mean", "rstd", "weight", "bias", "dweight", "dbias", "relu", "of_batch", "out", NULL};
    PyObject *dy_obj, *x_obj, *mean_obj, *rstd_obj, *w_obj, *b_obj, *dw_obj = Py_None, *db_obj = Py_None;
    PyObject *out_obj = Py_None, *result = NULL;
    int relu = 0, of_batch = 1;
    wasi_array dy, x, mean, rstd, w, b, dw, db;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOO|OOppO:batch_norm_backward", names, &dy_obj, &x_obj, &mean_obj,
                                     &rstd_obj, &w_obj, &b_obj, &dw_obj, &db_obj, &relu, &of_batch, &out_obj))
        return NULL;
    if (!wasi_need_rows(x_obj, "x", &x) || !need_width(&x) || !wasi_need_rows(dy_obj, "dy", &dy) ||
        !wasi_need_same_shape(&dy, "dy", &x, "x") || !wasi_need_channels(mean_obj, "mean", &x, &mean) ||
        !wasi_need_channels(rstd_obj, "rstd", &x, &rstd) || !wasi_need_channels(w_obj, "weight", &x, &w) ||
        !wasi_need_channels(b_obj, "bias", &x, &b) || !wasi_maybe_channel_sums(dw_obj, "dweight", &x, &dw) ||
        !wasi_maybe_channel_sums(db_obj, "dbias", &x, &db) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"mean", mean_obj}, {"rstd", rstd_obj}, {"weight", w_obj}, {"bias", b_obj}) ||
        !WASI_NEED_APART(2, {"dweight", dw_obj}, {"dbias", db_obj}, {"out", out_obj}, {"dy", dy_obj}, {"x", x_obj},
                         {"mean", mean_obj}, {"rstd", rstd_obj}, {"weight", w_obj}, {"bias", b_obj}))
        return NULL;

    PyArrayObject *dx = NULL, *work = NULL;
    int n_threads = wasi_get_num_threads();
    if ((dx = wasi_out_in_place(out_obj, &dy, "dy", &x, "x")) == NULL ||
        (work = wasi_new_scratch(wasi_batch_norm_work(w.dim[0], n_threads))) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = wasi_batch_norm_backward(WASI_DATA(dx), dw.data, db.data, dy.data, x.data, mean.data,
                                                  rstd.data, w.data, b.data, relu, of_batch, wasi_rows_of(&x), w.dim[0],
                                                  WASI_DATA(work), n_threads));
    result = status == WASI_OK ? Py_NewRef(dx) : wasi_raise(status, "batch_norm_backward");
done:
    Py_XDECREF(dx);
    Py_XDECREF(work);
    return result;
}

static PyObject *mask_gradient(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "mask", "out", NULL};
    PyObject *dy_obj, *mask_obj, *out_obj = Py_None;
    wasi_array dy, mask;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:mask_gradient", names, &dy_obj, &mask_obj, &out_obj) ||
        !wasi_need_f32(dy_obj, -1, "dy", &dy) || !wasi_need_array(mask_obj, NPY_UINT8, 1, "mask", &mask) ||
        !wasi_need_dim(&mask, 0, (dy.size + 7) / 8, "mask", "a bit for each number of dy") ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"mask", mask_obj}))
        return NULL;
    PyArrayObject *dx = wasi_out_in_place(out_obj, &dy, "dy", NULL, NULL);
    if (dx == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_mask_gradient(WASI_DATA(dx), dy.data, mask.data, dy.size, n_threads));
    return wasi_finish(status, dx, "mask_gradient");
}

PyMethodDef wasi_batchnorm_methods[] = {
    WASI_METHOD("batch_norm_statistics", batch_norm_statistics, "batch_norm_statistics(x) -> (mean, var)"),
    WASI_METHOD("batch_norm_forward", batch_norm_forward,
                "batch_norm_forward(x, mean, rstd, weight, bias, r=None, relu=False, need_mask=False, out=None) "
                "-> (y, mask or None)"),
    WASI_METHOD("batch_norm_backward", batch_norm_backward,
                "batch_norm_backward(dy, x, mean, rstd, weight, bias, dweight=None, dbias=None, relu=False, of_batch=True, "
                "out=None) -> dx"),
    WASI_METHOD("mask_gradient", mask_gradient, "mask_gradient(dy, mask, out=None) -> dx"),
    {NULL},
};
