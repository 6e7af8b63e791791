#include "bindings/tables.h"

#include <math.h>

#include "kernels/patch_embed.h"
#include "kernels/patch_merge.h"

enum { MAX_CHANNELS = 16 };

/* One number a channel. `given` is borrowed; `n` is the length of the sequence that it is, -1 where it is none. */
typedef struct {
    PyObject *given;
    Py_ssize_t n;
    float value[MAX_CHANNELS];
} channels;

/* A converter ("O&") of any sequence of numbers, or None. */
static int as_channels(PyObject *object, void *out)
{
    channels *numbers = out;
    numbers->given = object;
    if (object == Py_None)
        return 1;
    PyObject *tuple = PySequence_Tuple(object);
    if (tuple == NULL && !PyErr_ExceptionMatches(PyExc_TypeError))
        return 0;
    PyErr_Clear();
    numbers->n = tuple ? PyTuple_GET_SIZE(tuple) : -1;
    for (Py_ssize_t c = 0; c < WASI_MIN(numbers->n, MAX_CHANNELS) && !PyErr_Occurred(); c++)
        numbers->value[c] = (float)PyFloat_AsDouble(PyTuple_GET_ITEM(tuple, c));
    Py_XDECREF(tuple);
    return !PyErr_Occurred();
}

static int need_channels(const channels *numbers, npy_intp C, const char *name)
{
    if (numbers->given == Py_None || numbers->n == C)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: expected a sequence of %zd numbers, one a channel, got %R", name, (Py_ssize_t)C,
                 numbers->given);
    return 0;
}

static int need_patch(const wasi_array *images, long patch)
{
    npy_intp C = images->dim[1], S = images->dim[2];
    if (images->dim[3] != S || patch < 1 || S % patch != 0 || S == 0) {
        PyErr_Format(PyExc_ValueError, "images: expected shape (B, C, S, S) with S a multiple of the patch size %ld, "
                     "got images of %zd x %zd", patch, (Py_ssize_t)S, (Py_ssize_t)images->dim[3]);
        return 0;
    }
    if (C < 1 || C > MAX_CHANNELS) {
        PyErr_Format(PyExc_ValueError, "images.shape[1]: expected 1 to %d channels, got %zd", MAX_CHANNELS,
                     (Py_ssize_t)C);
        return 0;
    }
    return 1;
}

static PyObject *extract_patches(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"images", "patch", "mean", "std", "out", NULL};
    PyObject *images_obj, *out_obj = Py_None;
    long p;
    wasi_array images;
    channels mean = {.given = Py_None}, std = {.given = Py_None};
    float scale[MAX_CHANNELS], shift[MAX_CHANNELS];
    for (int c = 0; c < MAX_CHANNELS; c++)
        std.value[c] = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Ol|O&O&O:extract_patches", names, &images_obj, &p, as_channels, &mean,
                                     as_channels, &std, &out_obj))
        return NULL;
    int bytes = PyArray_Check(images_obj) && PyArray_TYPE((PyArrayObject *)images_obj) == NPY_UINT8;
    if (!wasi_need_array(images_obj, bytes ? NPY_UINT8 : NPY_FLOAT32, 4, "images", &images) || !need_patch(&images, p) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"images", images_obj}))
        return NULL;
    npy_intp B = images.dim[0], C = images.dim[1], S = images.dim[2];
    if (bytes && (!need_channels(&mean, C, "mean") || !need_channels(&std, C, "std")))
        return NULL;
    for (npy_intp c = 0; c < C && bytes; c++) {
        if (!(std.value[c] > 0))
            return PyErr_Format(PyExc_ValueError, "std: expected positive numbers, got %R", std.given);
        scale[c] = (float)(1 / (255.0 * std.value[c]));
        shift[c] = (float)(-(double)mean.value[c] / std.value[c]);
    }

    npy_intp dims[3] = {B, S / p * (S / p), C * p * p};
    PyArrayObject *patches = wasi_out_array(out_obj, NPY_FLOAT32, 3, dims, "out");
    if (patches == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    if (bytes)
        WASI_NO_GIL(status = wasi_extract_patches_u8(WASI_DATA(patches), images.data, scale, shift, B, C, S, p, n_threads));
    else
        WASI_NO_GIL(status = wasi_extract_patches_f32(WASI_DATA(patches), images.data, B, C, S, p, n_threads));
    return wasi_finish(status, patches, "extract_patches");
}

static PyObject *fold_patches(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"patches", "patch", "channels", NULL};
    PyObject *patches_obj;
    long p, C = 3;
    wasi_array patches;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Ol|l:fold_patches", names, &patches_obj, &p, &C))
        return NULL;
    if (!wasi_need_f32(patches_obj, 3, "patches", &patches))
        return NULL;
    npy_intp g = (npy_intp)sqrt((double)patches.dim[1]), width = patches.dim[2];
    if (p < 1 || g * g != patches.dim[1] || width < 1 || width % p != 0 || width / p % p != 0 || width / p / p != C)
        return PyErr_Format(PyExc_ValueError, "patches: expected shape (B, g * g, %ld * %ld * %ld), got "
                            "(%zd, %zd, %zd)", C, p, p, (Py_ssize_t)patches.dim[0], (Py_ssize_t)patches.dim[1],
                            (Py_ssize_t)patches.dim[2]);
    npy_intp dims[4] = {patches.dim[0], C, g * p, g * p};
    PyArrayObject *images = wasi_new_f32(4, dims);
    if (images == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_fold_patches(WASI_DATA(images), patches.data, dims[0], C, g * p, p, n_threads));
    return wasi_finish(status, images, "fold_patches");
}

static PyObject *assemble_tokens(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"rows", "cls", "pos", NULL};
    PyObject *rows_obj, *cls_obj, *pos_obj;
    wasi_array rows, cls, pos;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO:assemble_tokens", names, &rows_obj, &cls_obj, &pos_obj))
        return NULL;
    if (!wasi_need_f32(rows_obj, 3, "rows", &rows) || !wasi_maybe_array(cls_obj, NPY_FLOAT32, 3, "cls", &cls) ||
        !wasi_need_f32(pos_obj, 3, "pos", &pos) ||
        (cls.data && (!wasi_need_dim(&cls, 0, 1, "cls", "one for all samples") ||
                      !wasi_need_dim(&cls, 1, 1, "cls", "one token") ||
                      !wasi_need_dim(&cls, 2, rows.dim[2], "cls", "rows.shape[2]"))) ||
        !wasi_need_dim(&pos, 0, 1, "pos", "one for all samples") ||
        !wasi_need_dim(&pos, 1, rows.dim[1] + (cls.data != NULL), "pos", "one position a token") ||
        !wasi_need_dim(&pos, 2, rows.dim[2], "pos", "rows.shape[2]"))
        return NULL;
    npy_intp dims[3] = {rows.dim[0], pos.dim[1], rows.dim[2]};
    PyArrayObject *tokens = wasi_new_f32(3, dims);
    if (tokens == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_assemble_tokens(WASI_DATA(tokens), rows.data, cls.data, pos.data, rows.dim[0],
                                              rows.dim[1], rows.dim[2], cls.data != NULL, n_threads));
    return wasi_finish(status, tokens, "assemble_tokens");
}

static PyObject *assemble_tokens_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dtokens", "dcls", "dpos", "n_cls", NULL};
    PyObject *dtokens_obj, *dcls_obj = Py_None, *dpos_obj = Py_None;
    int n_cls = 1;
    wasi_array dtokens, dcls = {0}, dpos = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|OOi:assemble_tokens_backward", names, &dtokens_obj, &dcls_obj,
                                     &dpos_obj, &n_cls))
        return NULL;
    if (!wasi_need_f32(dtokens_obj, 3, "dtokens", &dtokens))
        return NULL;
    if (n_cls < 0 || n_cls > 1 || dtokens.dim[1] < n_cls)
        return PyErr_Format(PyExc_ValueError, "n_cls: expected 0 or 1 and no more than the tokens, got %d", n_cls);
    if ((dcls_obj != Py_None && (!wasi_need_writable(dcls_obj, NPY_FLOAT32, 3, "dcls", &dcls) ||
                                 !wasi_need_dim(&dcls, 0, 1, "dcls", "one for all samples") ||
                                 !wasi_need_dim(&dcls, 1, n_cls, "dcls", "n_cls") ||
                                 !wasi_need_dim(&dcls, 2, dtokens.dim[2], "dcls", "dtokens.shape[2]"))) ||
        (dpos_obj != Py_None && (!wasi_need_writable(dpos_obj, NPY_FLOAT32, 3, "dpos", &dpos) ||
                                 !wasi_need_dim(&dpos, 0, 1, "dpos", "one for all samples") ||
                                 !wasi_need_dim(&dpos, 1, dtokens.dim[1], "dpos", "dtokens.shape[1]") ||
                                 !wasi_need_dim(&dpos, 2, dtokens.dim[2], "dpos", "dtokens.shape[2]"))) ||
        !WASI_NEED_APART(2, {"dcls", dcls_obj}, {"dpos", dpos_obj}, {"dtokens", dtokens_obj}))
        return NULL;
    npy_intp dims[3] = {dtokens.dim[0], dtokens.dim[1] - n_cls, dtokens.dim[2]};
    PyArrayObject *drows = wasi_new_f32(3, dims);
    if (drows == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_assemble_tokens_backward(WASI_DATA(drows), dcls.data, dpos.data, dtokens.data, dims[0],
                                                       dims[1], dims[2], n_cls, n_threads));
    return wasi_finish(status, drows, "assemble_tokens_backward");
}

static PyObject *merge_patches(PyObject *self, PyObject *x_obj)
{
    wasi_array x;
    if (!wasi_need_f32(x_obj, 4, "x", &x))
        return NULL;
    for (int axis = 1; axis <= 2; axis++)
        if (x.dim[axis] % 2)
            return PyErr_Format(PyExc_ValueError, "x.shape[%d]: expected an even number, got %zd", axis,
                                (Py_ssize_t)x.dim[axis]);
    npy_intp dims[4] = {x.dim[0], x.dim[1] / 2, x.dim[2] / 2, 4 * x.dim[3]};
    PyArrayObject *y = wasi_new_f32(4, dims);
    if (y == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_merge_patches(WASI_DATA(y), x.data, x.dim[0], x.dim[1], x.dim[2], x.dim[3], n_threads));
    return wasi_finish(status, y, "merge_patches");
}

static PyObject *merge_patches_backward(PyObject *self, PyObject *dy_obj)
{
    wasi_array dy;
    if (!wasi_need_f32(dy_obj, 4, "dy", &dy))
        return NULL;
    if (dy.dim[3] % 4)
        return PyErr_Format(PyExc_ValueError, "dy.shape[3]: expected a multiple of 4, got %zd", (Py_ssize_t)dy.dim[3]);
    npy_intp dims[4] = {dy.dim[0], 2 * dy.dim[1], 2 * dy.dim[2], dy.dim[3] / 4};
    PyArrayObject *dx = wasi_new_f32(4, dims);
    if (dx == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_merge_patches_backward(WASI_DATA(dx), dy.data, dims[0], dims[1], dims[2], dims[3],
                                                     n_threads));
    return wasi_finish(status, dx, "merge_patches_backward");
}

PyMethodDef wasi_embed_methods[] = {
    WASI_METHOD("extract_patches", extract_patches,
                "extract_patches(images, patch, mean=None, std=None, out=None) -> patches"),
    WASI_METHOD("fold_patches", fold_patches, "fold_patches(patches, patch, channels=3) -> images"),
    WASI_METHOD("assemble_tokens", assemble_tokens, "assemble_tokens(rows, cls, pos) -> tokens"),
    WASI_METHOD("assemble_tokens_backward", assemble_tokens_backward,
                "assemble_tokens_backward(dtokens, dcls=None, dpos=None, n_cls=1) -> drows"),
    {"merge_patches", merge_patches, METH_O, "merge_patches(x) -> y"},
    {"merge_patches_backward", merge_patches_backward, METH_O, "merge_patches_backward(dy) -> dx"},
    {NULL},
};
