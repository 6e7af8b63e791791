#include "bindings/tables.h"

#include "kernels/layernorm.h"
#include "kernels/rmsnorm.h"

/* mean, rstd: what the forward pass saved. */
static int need_statistic(PyObject *object, const char *name, const wasi_array *x, wasi_array *out)
{
    if (!wasi_need_f32(object, -1, name, out))
        return 0;
    if (out->size == wasi_rows_of(x))
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: expected %zd numbers, one a row of x, got %zd", name,
                 (Py_ssize_t)wasi_rows_of(x), (Py_ssize_t)out->size);
    return 0;
}

static int need_eps(double eps)
{
    return wasi_need_number(eps >= 0, "eps", "a number that is not negative", eps);
}

static PyObject *layer_norm_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "weight", "bias", "eps", "out", NULL};
    PyObject *x_obj, *w_obj, *b_obj, *out_obj = Py_None, *result = NULL;
    double eps;
    wasi_array x, w, b;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOd|O:layer_norm_forward", names, &x_obj, &w_obj, &b_obj, &eps,
                                     &out_obj))
        return NULL;
    if (!wasi_need_rows(x_obj, "x", &x) || !wasi_need_channels(w_obj, "weight", &x, &w) ||
        !wasi_need_channels(b_obj, "bias", &x, &b) || !need_eps(eps) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"weight", w_obj}, {"bias", b_obj}))
        return NULL;

    PyArrayObject *y = NULL, *mean = NULL, *rstd = NULL;
    if ((y = wasi_out_in_place(out_obj, &x, "x", NULL, NULL)) == NULL || (mean = wasi_new_f32(x.ndim - 1, x.dim)) == NULL ||
        (rstd = wasi_new_f32(x.ndim - 1, x.dim)) == NULL)
        goto done;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_layer_norm_forward(NULL, WASI_DATA(y), WASI_DATA(mean), WASI_DATA(rstd), x.data, NULL,
                                                 w.data, b.data, (float)eps, wasi_rows_of(&x), w.dim[0], n_threads));
    result = status == WASI_OK ? PyTuple_Pack(3, y, mean, rstd) : wasi_raise(status, "layer_norm_forward");
done:
    Py_XDECREF(y);
    Py_XDECREF(mean);
    Py_XDECREF(rstd);
    return result;
}

static PyObject *add_layer_norm_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "r", "weight", "bias", "eps", "out_sum", "out", NULL};
    PyObject *x_obj, *r_obj, *w_obj, *b_obj, *sum_obj = Py_None, *out_obj = Py_None, *result = NULL;
    double eps;
    wasi_array x, r, w, b;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOd|OO:add_layer_norm_forward", names, &x_obj, &r_obj, &w_obj,
                                     &b_obj, &eps, &sum_obj, &out_obj))
        return NULL;
    if (!wasi_need_rows(x_obj, "x", &x) || !wasi_need_rows(r_obj, "r", &r) ||
        !wasi_need_same_shape(&r, "r", &x, "x") || !wasi_need_channels(w_obj, "weight", &x, &w) ||
        !wasi_need_channels(b_obj, "bias", &x, &b) || !need_eps(eps) ||
        !WASI_NEED_APART(2, {"out", out_obj}, {"out_sum", sum_obj}, {"weight", w_obj}, {"bias", b_obj}))
        return NULL;

    PyArrayObject *s = NULL, *y = NULL, *mean = NULL, *rstd = NULL;
    if ((s = wasi_out_array(sum_obj, NPY_FLOAT32, x.ndim, x.dim, "out_sum")) == NULL ||
        !wasi_need_in_place(s, "out_sum", &x, "x") || !wasi_need_in_place(s, "out_sum", &r, "r") ||
        (y = wasi_out_in_place(out_obj, &x, "x", &r, "r")) == NULL ||
        (mean = wasi_new_f32(x.ndim - 1, x.dim)) == NULL ||
        (rstd = wasi_new_f32(x.ndim - 1, x.dim)) == NULL)
        goto done;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_layer_norm_forward(WASI_DATA(s), WASI_DATA(y), WASI_DATA(mean), WASI_DATA(rstd), x.data,
                                                 r.data, w.data, b.data, (float)eps, wasi_rows_of(&x), w.dim[0],
                                                 n_threads));
    result = status == WASI_OK ? PyTuple_Pack(4, s, y, mean, rstd) : wasi_raise(status, "add_layer_norm_forward");
done:
    Py_XDECREF(s);
    Py_XDECREF(y);
    Py_XDECREF(mean);
    Py_XDECREF(rstd);
    return result;
}

static PyObject *layer_norm_apply(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "mean", "rstd", "weight", "bias", "out", NULL};
    PyObject *x_obj, *mean_obj, *rstd_obj, *w_obj, *b_obj, *out_obj = Py_None;
    wasi_array x, mean, rstd, w, b;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO|O:layer_norm_apply", names, &x_obj, &mean_obj, &rstd_obj,
                                     &w_obj, &b_obj, &out_obj))
        return NULL;
    if (!wasi_need_rows(x_obj, "x", &x) || !need_statistic(mean_obj, "mean", &x, &mean) ||
        !need_statistic(rstd_obj, "rstd", &x, &rstd) || !wasi_need_channels(w_obj, "weight", &x, &w) ||
        !wasi_need_channels(b_obj, "bias", &x, &b) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"mean", mean_obj}, {"rstd", rstd_obj}, {"weight", w_obj}, {"bias", b_obj}))
        return NULL;

    PyArrayObject *y = wasi_out_in_place(out_obj, &x, "x", NULL, NULL);
    if (y == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_layer_norm_apply(WASI_DATA(y), x.data, mean.data, rstd.data, w.data, b.data,
                                               wasi_rows_of(&x), w.dim[0], n_threads));
    return wasi_finish(status, y, "layer_norm_apply");
}

static PyObject *layer_norm_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "x", "mean", "rstd", "weight", "dweight", "dbias", "out", "add_to", NULL};
    PyObject *dy_obj, *x_obj, *mean_obj, *rstd_obj, *w_obj, *dw_obj = Py_None, *db_obj = Py_None, *out_obj = Py_None;
    PyObject *add_obj = Py_None, *result = NULL;
    wasi_array dy, x, mean, rstd, w, dw, db, add_to;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO|OOOO:layer_norm_backward", names, &dy_obj, &x_obj, &mean_obj,
                                     &rstd_obj, &w_obj, &dw_obj, &db_obj, &out_obj, &add_obj))
        return NULL;
    if (!wasi_need_rows(x_obj, "x", &x) || !wasi_need_rows(dy_obj, "dy", &dy) ||
        !wasi_need_same_shape(&dy, "dy", &x, "x") || !need_statistic(mean_obj, "mean", &x, &mean) ||
        !need_statistic(rstd_obj, "rstd", &x, &rstd) || !wasi_need_channels(w_obj, "weight", &x, &w) ||
        !wasi_maybe_channel_sums(dw_obj, "dweight", &x, &dw) || !wasi_maybe_channel_sums(db_obj, "dbias", &x, &db) ||
        !wasi_maybe_array(add_obj, NPY_FLOAT32, -1, "add_to", &add_to) ||
        (add_to.data && !wasi_need_same_shape(&add_to, "add_to", &x, "x")) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"mean", mean_obj}, {"rstd", rstd_obj}, {"weight", w_obj}) ||
        !WASI_NEED_APART(2, {"dweight", dw_obj}, {"dbias", db_obj}, {"out", out_obj}, {"dy", dy_obj}, {"x", x_obj},
                         {"mean", mean_obj}, {"rstd", rstd_obj}, {"weight", w_obj}, {"add_to", add_obj}))
        return NULL;

    PyArrayObject *dx = NULL, *work = NULL;
    int n_threads = wasi_get_num_threads();
    if ((dx = wasi_out_in_place(out_obj, &dy, "dy", &x, "x")) == NULL ||
        !wasi_need_in_place(dx, "out", &add_to, "add_to") ||
        (work = wasi_new_scratch(wasi_layer_norm_backward_work(w.dim[0], n_threads))) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = wasi_layer_norm_backward(WASI_DATA(dx), dw.data, db.data, dy.data, x.data, mean.data,
                                                  rstd.data, w.data, add_to.data, wasi_rows_of(&x), w.dim[0],
                                                  WASI_DATA(work), n_threads));
    result = status == WASI_OK ? Py_NewRef(dx) : wasi_raise(status, "layer_norm_backward");
done:
    Py_XDECREF(dx);
    Py_XDECREF(work);
    return result;
}

static PyObject *rms_norm_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "weight", "eps", "out", NULL};
    PyObject *x_obj, *w_obj, *out_obj = Py_None, *result = NULL;
    double eps;
    wasi_array x, w;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOd|O:rms_norm_forward", names, &x_obj, &w_obj, &eps, &out_obj))
        return NULL;
    if (!wasi_need_rows(x_obj, "x", &x) || !wasi_need_channels(w_obj, "weight", &x, &w) || !need_eps(eps) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"weight", w_obj}))
        return NULL;

    PyArrayObject *y = NULL, *rstd = NULL;
    if ((y = wasi_out_in_place(out_obj, &x, "x", NULL, NULL)) == NULL || (rstd = wasi_new_f32(x.ndim - 1, x.dim)) == NULL)
        goto done;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_rms_norm_forward(WASI_DATA(y), WASI_DATA(rstd), x.data, w.data, (float)eps,
                                               wasi_rows_of(&x), w.dim[0], n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, y, rstd) : wasi_raise(status, "rms_norm_forward");
done:
    Py_XDECREF(y);
    Py_XDECREF(rstd);
    return result;
}

static PyObject *rms_norm_apply(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "rstd", "weight", "out", NULL};
    PyObject *x_obj, *rstd_obj, *w_obj, *out_obj = Py_None;
    wasi_array x, rstd, w;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|O:rms_norm_apply", names, &x_obj, &rstd_obj, &w_obj, &out_obj))
        return NULL;
    if (!wasi_need_rows(x_obj, "x", &x) || !need_statistic(rstd_obj, "rstd", &x, &rstd) ||
        !wasi_need_channels(w_obj, "weight", &x, &w) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"rstd", rstd_obj}, {"weight", w_obj}))
        return NULL;

    PyArrayObject *y = wasi_out_in_place(out_obj, &x, "x", NULL, NULL);
    if (y == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_rms_norm_apply(WASI_DATA(y), x.data, rstd.data, w.data, wasi_rows_of(&x), w.dim[0],
                                             n_threads));
    return wasi_finish(status, y, "rms_norm_apply");
}

static PyObject *rms_norm_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "x", "rstd", "weight", "dweight", "out", "add_to", NULL};
    PyObject *dy_obj, *x_obj, *rstd_obj, *w_obj, *dw_obj = Py_None, *out_obj = Py_None, *add_obj = Py_None;
    PyObject *result = NULL;
    wasi_array dy, x, rstd, w, dw, add_to;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|OOO:rms_norm_backward", names, &dy_obj, &x_obj, &rstd_obj,
                                     &w_obj, &dw_obj, &out_obj, &add_obj))
        return NULL;
    if (!wasi_need_rows(x_obj, "x", &x) || !wasi_need_rows(dy_obj, "dy", &dy) ||
        !wasi_need_same_shape(&dy, "dy", &x, "x") || !need_statistic(rstd_obj, "rstd", &x, &rstd) ||
        !wasi_need_channels(w_obj, "weight", &x, &w) || !wasi_maybe_channel_sums(dw_obj, "dweight", &x, &dw) ||
        !wasi_maybe_array(add_obj, NPY_FLOAT32, -1, "add_to", &add_to) ||
        (add_to.data && !wasi_need_same_shape(&add_to, "add_to", &x, "x")) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"rstd", rstd_obj}, {"weight", w_obj}) ||
        !WASI_NEED_APART(1, {"dweight", dw_obj}, {"out", out_obj}, {"dy", dy_obj}, {"x", x_obj}, {"rstd", rstd_obj},
                         {"weight", w_obj}, {"add_to", add_obj}))
        return NULL;

    PyArrayObject *dx = NULL, *work = NULL;
    int n_threads = wasi_get_num_threads();
    if ((dx = wasi_out_in_place(out_obj, &dy, "dy", &x, "x")) == NULL ||
        !wasi_need_in_place(dx, "out", &add_to, "add_to") ||
        (work = wasi_new_scratch(wasi_rms_norm_backward_work(w.dim[0], n_threads))) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = wasi_rms_norm_backward(WASI_DATA(dx), dw.data, dy.data, x.data, rstd.data, w.data, add_to.data,
                                                wasi_rows_of(&x), w.dim[0], WASI_DATA(work), n_threads));
    result = status == WASI_OK ? Py_NewRef(dx) : wasi_raise(status, "rms_norm_backward");
done:
    Py_XDECREF(dx);
    Py_XDECREF(work);
    return result;
}

PyMethodDef wasi_norm_methods[] = {
    WASI_METHOD("layer_norm_forward", layer_norm_forward,
                "layer_norm_forward(x, weight, bias, eps, out=None) -> (y, mean, rstd)"),
    WASI_METHOD("add_layer_norm_forward", add_layer_norm_forward,
                "add_layer_norm_forward(x, r, weight, bias, eps, out_sum=None, out=None) -> (s, y, mean, rstd)"),
    WASI_METHOD("layer_norm_apply", layer_norm_apply,
                "layer_norm_apply(x, mean, rstd, weight, bias, out=None) -> y"),
    WASI_METHOD("layer_norm_backward", layer_norm_backward,
                "layer_norm_backward(dy, x, mean, rstd, weight, dweight=None, dbias=None, out=None, add_to=None) "
                "-> dx"),
    WASI_METHOD("rms_norm_forward", rms_norm_forward, "rms_norm_forward(x, weight, eps, out=None) -> (y, rstd)"),
    WASI_METHOD("rms_norm_apply", rms_norm_apply, "rms_norm_apply(x, rstd, weight, out=None) -> y"),
    WASI_METHOD("rms_norm_backward", rms_norm_backward,
                "rms_norm_backward(dy, x, rstd, weight, dweight=None, out=None, add_to=None) -> dx"),
    {NULL},
};
