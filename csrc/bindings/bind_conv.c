#include "bindings/tables.h"

#include "kernels/bgemm.h"
#include "kernels/conv.h"
#include "kernels/pool.h"

static int need_channels(npy_intp C, const char *name)
{
    if (C > 0)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: expected at least 1 channel, got 0", name);
    return 0;
}

/* Kernel, stride and padding, and what they make of images of H x W: B and C are left to the caller. */
static int need_window(Py_ssize_t H, Py_ssize_t W, Py_ssize_t k, Py_ssize_t s, Py_ssize_t pad, wasi_conv *conv)
{
    if (k < 1 || s < 1 || pad < 0 || pad >= k || k > 255 || s > 65536) {
        PyErr_Format(PyExc_ValueError, "kernel, stride, padding: expected 1 to 255, 1 to 65536, 0 to kernel - 1, "
                     "got %zd, %zd, %zd", k, s, pad);
        return 0;
    }
    if (H < 1 || W < 1 || H + 2 * pad < k || W + 2 * pad < k) {
        PyErr_Format(PyExc_ValueError, "x: expected images of at least %zd x %zd pixels for a kernel of %zd with padding %zd, "
                     "got %zd x %zd", WASI_MAX(1, k - 2 * pad), WASI_MAX(1, k - 2 * pad), k, pad, H, W);
        return 0;
    }
    *conv = (wasi_conv){.H = H, .W = W, .k = k, .s = s, .pad = pad, .Ho = (H + 2 * pad - k) / s + 1,
                        .Wo = (W + 2 * pad - k) / s + 1};
    return 1;
}

/* x (B, H, W, C) for that window. */
static int need_images(PyObject *object, const char *name, Py_ssize_t k, Py_ssize_t s, Py_ssize_t pad, wasi_array *x,
                       wasi_conv *conv)
{
    if (!wasi_need_f32(object, 4, name, x) || !need_window(x->dim[1], x->dim[2], k, s, pad, conv) ||
        !need_channels(x->dim[3], name))
        return 0;
    conv->B = x->dim[0];
    conv->C = x->dim[3];
    return 1;
}

/* W (O, k k C) for images of `C` channels, C < 0: any number that W allows. */
static int need_weight(PyObject *object, wasi_array *W, wasi_conv *conv, npy_intp C)
{
    if (!wasi_need_f32(object, 2, "W", W))
        return 0;
    npy_intp taps = conv->k * conv->k;
    if (C >= 0)
        return wasi_need_dim(W, 1, taps * C, "W", "kernel * kernel * x.shape[3]");
    if (W->dim[1] % taps != 0) {
        PyErr_Format(PyExc_ValueError, "W.shape[1]: expected a multiple of kernel * kernel = %zd, got %zd", (Py_ssize_t)taps,
                     (Py_ssize_t)W->dim[1]);
        return 0;
    }
    conv->C = W->dim[1] / taps;
    return need_channels(conv->C, "W");
}

/* The gradient of a result: (B, Ho, Wo, width). Sets B. */
static int need_result(PyObject *object, const char *name, wasi_array *dy, wasi_conv *conv, npy_intp width,
                       const char *why)
{
    if (!wasi_need_f32(object, 4, name, dy) || !wasi_need_dim(dy, 1, conv->Ho, name, "the window's lines") ||
        !wasi_need_dim(dy, 2, conv->Wo, name, "the window's columns") ||
        (width >= 0 && !wasi_need_dim(dy, 3, width, name, why)))
        return 0;
    conv->B = dy->dim[0];
    return 1;
}

static PyObject *conv_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "W", "kernel", "stride", "padding", "b", "out", NULL};
    PyObject *x_obj, *W_obj, *b_obj = Py_None, *out_obj = Py_None, *result = NULL;
    Py_ssize_t k, s, pad;
    wasi_array x, W, b;
    wasi_conv conv;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOnnn|OO:conv_forward", names, &x_obj, &W_obj, &k, &s, &pad, &b_obj,
                                     &out_obj))
        return NULL;
    if (!need_images(x_obj, "x", k, s, pad, &x, &conv) || !need_weight(W_obj, &W, &conv, conv.C) ||
        !wasi_maybe_array(b_obj, NPY_FLOAT32, 1, "b", &b) || (b.data && !wasi_need_dim(&b, 0, W.dim[0], "b", "W.shape[0]")) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"x", x_obj}, {"W", W_obj}, {"b", b_obj}))
        return NULL;

    npy_intp dims[] = {conv.B, conv.Ho, conv.Wo, W.dim[0]};
    int n_threads = wasi_get_num_threads();
    bool bfloat16 = wasi_bgemm_chosen();
    PyArrayObject *y = NULL, *work = NULL;
    if ((y = wasi_out_array(out_obj, NPY_FLOAT32, 4, dims, "out")) == NULL ||
        (work = wasi_new_scratch(wasi_conv_work(&conv, bfloat16, n_threads))) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = wasi_conv_forward(WASI_DATA(y), x.data, W.data, b.data, &conv, W.dim[0], bfloat16,
                                           WASI_DATA(work), n_threads));
    result = status == WASI_OK ? Py_NewRef(y) : wasi_raise(status, "conv_forward");
done:
    Py_XDECREF(y);
    Py_XDECREF(work);
    return result;
}

static PyObject *conv_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "x", "W", "height", "width", "kernel", "stride", "padding", "dW", "db", "need_dx",
                            "out", NULL};
    PyObject *dy_obj, *x_obj, *W_obj, *dW_obj = Py_None, *db_obj = Py_None, *out_obj = Py_None, *result = NULL;
    Py_ssize_t height, width, k, s, pad;
    int need_dx = 1;
    wasi_array dy, x = {0}, W, dW, db;
    wasi_conv conv, given;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOnnnnn|OOpO:conv_backward", names, &dy_obj, &x_obj, &W_obj, &height,
                                     &width, &k, &s, &pad, &dW_obj, &db_obj, &need_dx, &out_obj))
        return NULL;
    if (!need_window(height, width, k, s, pad, &conv) || !need_weight(W_obj, &W, &conv, -1) ||
        !need_result(dy_obj, "dy", &dy, &conv, W.dim[0], "W.shape[0]") ||
        !wasi_maybe_sums_like(dW_obj, "dW", &W, "W", &dW) || !wasi_maybe_sums(db_obj, "db", W.dim[0], "W.shape[0]", &db) ||
        (dW.data &&
         (!need_images(x_obj, "x", k, s, pad, &x, &given) || !wasi_need_dim(&x, 0, conv.B, "x", "dy.shape[0]") ||
          !wasi_need_dim(&x, 1, height, "x", "height") || !wasi_need_dim(&x, 2, width, "x", "width") ||
          !wasi_need_dim(&x, 3, conv.C, "x", "W.shape[1] / kernel / kernel"))) ||
        !WASI_NEED_APART(3, {"out", need_dx ? out_obj : NULL}, {"dW", dW_obj}, {"db", db_obj}, {"dy", dy_obj},
                         {"W", need_dx ? W_obj : NULL}, {"x", dW.data ? x_obj : NULL}))
        return NULL;

    npy_intp dims[] = {conv.B, conv.H, conv.W, conv.C};
    int n_threads = wasi_get_num_threads();
    bool bfloat16 = wasi_bgemm_chosen();
    PyArrayObject *dx = NULL, *work = NULL;
    if ((need_dx && (dx = wasi_out_array(out_obj, NPY_FLOAT32, 4, dims, "out")) == NULL) ||
        (work = wasi_new_scratch(wasi_conv_work(&conv, bfloat16, n_threads))) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = wasi_conv_backward(dx ? WASI_DATA(dx) : NULL, dW.data, db.data, dy.data, x.data, W.data, &conv,
                                            W.dim[0], bfloat16, WASI_DATA(work), n_threads));
    result = status == WASI_OK ? Py_NewRef(dx ? (PyObject *)dx : Py_None) : wasi_raise(status, "conv_backward");
done:
    Py_XDECREF(dx);
    Py_XDECREF(work);
    return result;
}

static PyObject *conv_unfold(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "kernel", "stride", "padding", NULL};
    PyObject *x_obj;
    Py_ssize_t k, s, pad;
    wasi_array x;
    wasi_conv conv;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Onnn:conv_unfold", names, &x_obj, &k, &s, &pad) ||
        !need_images(x_obj, "x", k, s, pad, &x, &conv))
        return NULL;
    npy_intp dims[] = {conv.B, conv.Ho, conv.Wo, k * k * conv.C};
    PyArrayObject *p = wasi_new_f32(4, dims);
    if (p == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_conv_unfold(WASI_DATA(p), x.data, &conv, n_threads));
    return wasi_finish(status, p, "conv_unfold");
}

static PyObject *conv_fold(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dp", "height", "width", "kernel", "stride", "padding", "out", NULL};
    PyObject *dp_obj, *out_obj = Py_None;
    Py_ssize_t height, width, k, s, pad;
    wasi_array dp;
    wasi_conv conv;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Onnnnn|O:conv_fold", names, &dp_obj, &height, &width, &k, &s, &pad,
                                     &out_obj) ||
        !need_window(height, width, k, s, pad, &conv) || !need_result(dp_obj, "dp", &dp, &conv, -1, NULL) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"dp", dp_obj}))
        return NULL;
    if (dp.dim[3] % (k * k) != 0)
        return PyErr_Format(PyExc_ValueError, "dp.shape[3]: expected a multiple of kernel * kernel = %zd, got %zd", k * k,
                            (Py_ssize_t)dp.dim[3]);
    conv.C = dp.dim[3] / (k * k);
    if (!need_channels(conv.C, "dp"))
        return NULL;
    npy_intp dims[] = {conv.B, height, width, conv.C};
    PyArrayObject *dx = wasi_out_array(out_obj, NPY_FLOAT32, 4, dims, "out");
    if (dx == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_conv_fold(WASI_DATA(dx), dp.data, &conv, n_threads));
    return wasi_finish(status, dx, "conv_fold");
}

static PyObject *max_pool_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "kernel", "stride", "padding", NULL};
    PyObject *x_obj, *result = NULL;
    Py_ssize_t k, s, pad;
    wasi_array x;
    wasi_conv conv;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Onnn:max_pool_forward", names, &x_obj, &k, &s, &pad) ||
        !need_images(x_obj, "x", k, s, pad, &x, &conv))
        return NULL;
    if (k > WASI_POOL_MAX_KERNEL)
        return PyErr_Format(PyExc_ValueError, "kernel: expected at most %d, got %zd", WASI_POOL_MAX_KERNEL, k);
    npy_intp dims[] = {conv.B, conv.Ho, conv.Wo, conv.C};
    PyArrayObject *y = NULL, *tap = NULL;
    if ((y = wasi_new_f32(4, dims)) == NULL || (tap = wasi_new_array(NPY_UINT8, 4, dims)) == NULL)
        goto done;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_max_pool_forward(WASI_DATA(y), WASI_DATA(tap), x.data, &conv, n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, y, tap) : wasi_raise(status, "max_pool_forward");
done:
    Py_XDECREF(y);
    Py_XDECREF(tap);
    return result;
}

static PyObject *max_pool_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "tap", "height", "width", "kernel", "stride", "padding", NULL};
    PyObject *dy_obj, *tap_obj;
    Py_ssize_t height, width, k, s, pad;
    wasi_array dy, tap;
    wasi_conv conv;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOnnnnn:max_pool_backward", names, &dy_obj, &tap_obj, &height, &width,
                                     &k, &s, &pad) ||
        !need_window(height, width, k, s, pad, &conv) || !need_result(dy_obj, "dy", &dy, &conv, -1, NULL) ||
        !wasi_need_array(tap_obj, NPY_UINT8, 4, "tap", &tap) || !wasi_need_same_shape(&tap, "tap", &dy, "dy"))
        return NULL;
    conv.C = dy.dim[3];
    npy_intp dims[] = {conv.B, height, width, conv.C};
    PyArrayObject *dx = wasi_new_f32(4, dims);
    if (dx == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_max_pool_backward(WASI_DATA(dx), dy.data, tap.data, &conv, n_threads));
    return wasi_finish(status, dx, "max_pool_backward");
}

PyMethodDef wasi_conv_methods[] = {
    WASI_METHOD("conv_forward", conv_forward, "conv_forward(x, W, kernel, stride, padding, b=None, out=None) -> y"),
    WASI_METHOD("conv_backward", conv_backward,
                "conv_backward(dy, x, W, height, width, kernel, stride, padding, dW=None, db=None, need_dx=True, out=None) "
                "-> dx or None"),
    WASI_METHOD("conv_unfold", conv_unfold, "conv_unfold(x, kernel, stride, padding) -> p"),
    WASI_METHOD("conv_fold", conv_fold, "conv_fold(dp, height, width, kernel, stride, padding, out=None) -> dx"),
    WASI_METHOD("max_pool_forward", max_pool_forward, "max_pool_forward(x, kernel, stride, padding) -> (y, tap)"),
    WASI_METHOD("max_pool_backward", max_pool_backward,
                "max_pool_backward(dy, tap, height, width, kernel, stride, padding) -> dx"),
    {NULL},
};
