#include "bindings/tables.h"

#include "kernels/gelu.h"
#include "kernels/silu.h"

static int need_bits(int bits)
{
    if (bits == 2 || bits == 4)
        return 1;
    PyErr_Format(PyExc_ValueError, "bits: expected 2 or 4, got %d", bits);
    return 0;
}

/* What stands over kernels/elementwise.h: a result of the shape of one array, or of two. */

typedef wasi_status (*map_kernel)(float *, const float *, wasi_int, int);

static PyObject *map(PyObject *args, PyObject *kwargs, const char *format, const char *where, map_kernel kernel)
{
    static char *names[] = {"h", "out", NULL};
    PyObject *h_obj, *out_obj = Py_None;
    wasi_array h;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &h_obj, &out_obj))
        return NULL;
    if (!wasi_need_f32(h_obj, -1, "h", &h))
        return NULL;

    PyArrayObject *g = wasi_out_in_place(out_obj, &h, "h", NULL, NULL);
    if (g == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = kernel(WASI_DATA(g), h.data, h.size, n_threads));
    return wasi_finish(status, g, where);
}

typedef wasi_status (*map2_kernel)(float *, const float *, const float *, wasi_int, int);

static PyObject *map2(PyObject *args, PyObject *kwargs, const char *format, char **names, const char *where,
                      map2_kernel kernel)
{
    PyObject *first_obj, *second_obj, *out_obj = Py_None;
    wasi_array first, second;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &first_obj, &second_obj, &out_obj))
        return NULL;
    if (!wasi_need_f32(first_obj, -1, names[0], &first) || !wasi_need_f32(second_obj, -1, names[1], &second) ||
        !wasi_need_same_shape(&second, names[1], &first, names[0]))
        return NULL;

    PyArrayObject *out = wasi_out_in_place(out_obj, &first, names[0], &second, names[1]);
    if (out == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = kernel(WASI_DATA(out), first.data, second.data, first.size, n_threads));
    return wasi_finish(status, out, where);
}

static char *gradient_names[] = {"dy", "h", "out", NULL};

static PyObject *gelu_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return map(args, kwargs, "O|O:gelu_forward", "gelu_forward", wasi_gelu_forward);
}

static PyObject *gelu_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return map2(args, kwargs, "OO|O:gelu_backward", gradient_names, "gelu_backward", wasi_gelu_backward);
}

static PyObject *silu_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return map(args, kwargs, "O|O:silu_forward", "silu_forward", wasi_silu_forward);
}

static PyObject *silu_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return map2(args, kwargs, "OO|O:silu_backward", gradient_names, "silu_backward", wasi_silu_backward);
}

static PyObject *bias_gelu_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"h", "b", "out", NULL};
    PyObject *h_obj, *b_obj, *out_obj = Py_None;
    wasi_array h, b;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:bias_gelu_forward", names, &h_obj, &b_obj, &out_obj))
        return NULL;
    if (!wasi_need_rows(h_obj, "h", &h) || !wasi_need_writable(h_obj, NPY_FLOAT32, -1, "h", &h) ||
        !wasi_need_f32(b_obj, 1, "b", &b) || !wasi_need_dim(&b, 0, h.dim[h.ndim - 1], "b", "h.shape[-1]") ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"b", b_obj}) || !WASI_NEED_APART(1, {"h", h_obj}, {"b", b_obj}))
        return NULL;

    PyArrayObject *g = wasi_out_in_place(out_obj, &h, "h", NULL, NULL);
    if (g == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_bias_gelu_forward(WASI_DATA(g), h.data, b.data, wasi_rows_of(&h), b.dim[0], n_threads));
    return wasi_finish(status, g, "bias_gelu_forward");
}

static PyObject *gelu_encode(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"h", "bits", "b", "out", NULL};
    PyObject *h_obj, *b_obj = Py_None, *out_obj = Py_None, *result = NULL;
    int bits = 4;
    wasi_array h, b;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|iOO:gelu_encode", names, &h_obj, &bits, &b_obj, &out_obj))
        return NULL;
    if (!wasi_need_rows(h_obj, "h", &h) || !need_bits(bits) || !wasi_maybe_array(b_obj, NPY_FLOAT32, 1, "b", &b) ||
        (b.data && !wasi_need_dim(&b, 0, h.dim[h.ndim - 1], "b", "h.shape[-1]")) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"b", b_obj}))
        return NULL;

    PyArrayObject *g = NULL, *codes = NULL;
    npy_intp n_bytes = wasi_gelu_code_bytes(h.size, bits);
    if ((g = wasi_out_in_place(out_obj, &h, "h", NULL, NULL)) == NULL ||
        (codes = wasi_new_array(NPY_UINT8, 1, &n_bytes)) == NULL)
        goto done;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_gelu_encode(WASI_DATA(g), WASI_DATA(codes), h.data, b.data, bits, wasi_rows_of(&h),
                                          h.dim[h.ndim - 1], n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, g, codes) : wasi_raise(status, "gelu_encode");
done:
    Py_XDECREF(g);
    Py_XDECREF(codes);
    return result;
}

static PyObject *gelu_decode_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "codes", "bits", "out", NULL};
    PyObject *dy_obj, *codes_obj, *out_obj = Py_None;
    int bits;
    wasi_array dy, codes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOi|O:gelu_decode_backward", names, &dy_obj, &codes_obj, &bits,
                                     &out_obj))
        return NULL;
    if (!wasi_need_f32(dy_obj, -1, "dy", &dy) || !need_bits(bits) ||
        !wasi_need_array(codes_obj, NPY_UINT8, 1, "codes", &codes) ||
        !wasi_need_dim(&codes, 0, wasi_gelu_code_bytes(dy.size, bits), "codes", "the codes of dy.size numbers") ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"codes", codes_obj}))
        return NULL;

    PyArrayObject *dh = wasi_out_in_place(out_obj, &dy, "dy", NULL, NULL);
    if (dh == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_gelu_decode_backward(WASI_DATA(dh), dy.data, codes.data, bits, dy.size, n_threads));
    return wasi_finish(status, dh, "gelu_decode_backward");
}

static PyObject *swiglu_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"a", "b", "out", NULL};
    return map2(args, kwargs, "OO|O:swiglu_forward", names, "swiglu_forward", wasi_swiglu_forward);
}

static PyObject *swiglu_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "a", "b", "out_a", "out_b", NULL};
    PyObject *dy_obj, *a_obj, *b_obj, *da_obj = Py_None, *db_obj = Py_None, *result = NULL;
    wasi_array dy, a, b;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|OO:swiglu_backward", names, &dy_obj, &a_obj, &b_obj, &da_obj,
                                     &db_obj))
        return NULL;
    if (!wasi_need_f32(a_obj, -1, "a", &a) || !wasi_need_f32(b_obj, -1, "b", &b) ||
        !wasi_need_same_shape(&b, "b", &a, "a") || !wasi_need_f32(dy_obj, -1, "dy", &dy) ||
        !wasi_need_same_shape(&dy, "dy", &a, "a") || !WASI_NEED_APART(1, {"out_a", da_obj}, {"out_b", db_obj}))
        return NULL;

    PyArrayObject *da = NULL, *db = NULL;
    if ((da = wasi_out_array(da_obj, NPY_FLOAT32, a.ndim, a.dim, "out_a")) == NULL ||
        (db = wasi_out_array(db_obj, NPY_FLOAT32, a.ndim, a.dim, "out_b")) == NULL ||
        !wasi_need_in_place(da, "out_a", &dy, "dy") || !wasi_need_in_place(da, "out_a", &a, "a") ||
        !wasi_need_in_place(da, "out_a", &b, "b") || !wasi_need_in_place(db, "out_b", &dy, "dy") ||
        !wasi_need_in_place(db, "out_b", &a, "a") || !wasi_need_in_place(db, "out_b", &b, "b"))
        goto done;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_swiglu_backward(WASI_DATA(da), WASI_DATA(db), dy.data, a.data, b.data, a.size,
                                              n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, da, db) : wasi_raise(status, "swiglu_backward");
done:
    Py_XDECREF(da);
    Py_XDECREF(db);
    return result;
}

PyMethodDef wasi_activation_methods[] = {
    WASI_METHOD("gelu_forward", gelu_forward, "gelu_forward(h, out=None) -> g"),
    WASI_METHOD("bias_gelu_forward", bias_gelu_forward, "bias_gelu_forward(h, b, out=None) -> g"),
    WASI_METHOD("gelu_backward", gelu_backward, "gelu_backward(dy, h, out=None) -> dh"),
    WASI_METHOD("gelu_encode", gelu_encode, "gelu_encode(h, bits=4, b=None, out=None) -> (g, codes)"),
    WASI_METHOD("gelu_decode_backward", gelu_decode_backward, "gelu_decode_backward(dy, codes, bits, out=None) -> dh"),
    WASI_METHOD("silu_forward", silu_forward, "silu_forward(h, out=None) -> g"),
    WASI_METHOD("silu_backward", silu_backward, "silu_backward(dy, h, out=None) -> dh"),
    WASI_METHOD("swiglu_forward", swiglu_forward, "swiglu_forward(a, b, out=None) -> g"),
    WASI_METHOD("swiglu_backward", swiglu_backward, "swiglu_backward(dy, a, b, out_a=None, out_b=None) -> (da, db)"),
    {NULL},
};
