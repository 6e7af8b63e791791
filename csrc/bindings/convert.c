#include "bindings/convert.h"

#include "common/redzone.h"

int wasi_as_double(PyObject *object, void *maybe_double)
{
    wasi_maybe_double *out = maybe_double;
    out->given = object != Py_None;
    if (out->given)
        out->value = PyFloat_AsDouble(object);
    return !(out->given && out->value == -1 && PyErr_Occurred());
}

int wasi_as_size(PyObject *object, void *maybe_size)
{
    wasi_maybe_size *out = maybe_size;
    out->given = object != Py_None;
    if (out->given)
        out->value = PyNumber_AsSsize_t(object, PyExc_OverflowError);
    return !(out->given && out->value == -1 && PyErr_Occurred());
}

int wasi_need_number(int ok, const char *name, const char *expected, double got)
{
    if (ok)
        return 1;
    PyObject *number = PyFloat_FromDouble(got);
    if (number)
        PyErr_Format(PyExc_ValueError, "%s: expected %s, got %S", name, expected, number);
    Py_XDECREF(number);
    return 0;
}

/* "float32 array of shape (3, 4)" for error messages. */
static PyObject *describe(PyObject *object)
{
    if (!PyArray_Check(object))
        return PyUnicode_FromString(Py_TYPE(object)->tp_name);
    PyObject *shape = PyObject_GetAttrString(object, "shape");
    if (shape == NULL)
        return NULL;
    PyObject *text = PyUnicode_FromFormat("%S array of shape %R", PyArray_DESCR((PyArrayObject *)object), shape);
    Py_DECREF(shape);
    return text;
}

static int refuse(PyObject *exception, const char *name, PyObject *expected, PyObject *object)
{
    PyObject *got = describe(object);
    if (expected != NULL && got != NULL)
        PyErr_Format(exception, "%s: expected %U, got %U", name, expected, got);
    Py_XDECREF(expected);
    Py_XDECREF(got);
    return 0;
}

static const char *type_name(int typenum)
{
    switch (typenum) {
    case NPY_FLOAT32: return "a float32";
    case NPY_FLOAT64: return "a float64";
    case NPY_UINT8:   return "a uint8";
    case NPY_UINT16:  return "a uint16";
    case NPY_INT64:   return "an int64";
    default:          return "a numeric";
    }
}

int wasi_need_array(PyObject *object, int typenum, int ndim, const char *name, wasi_array *out)
{
    PyArrayObject *array = (PyArrayObject *)object;
    if (!PyArray_Check(object) || !PyArray_EquivTypenums(PyArray_TYPE(array), typenum)) /* long and long long may be one */
        return refuse(PyExc_TypeError, name, PyUnicode_FromFormat("%s array", type_name(typenum)), object);
    if (ndim >= 0 && PyArray_NDIM(array) != ndim)
        return refuse(PyExc_ValueError, name, PyUnicode_FromFormat("%d dimensions", ndim), object);
    if (PyArray_NDIM(array) > WASI_MAX_DIMS)
        return refuse(PyExc_ValueError, name, PyUnicode_FromFormat("at most %d dimensions", WASI_MAX_DIMS), object);
    if (!PyArray_ISCARRAY_RO(array)) {
        PyErr_Format(PyExc_ValueError, "%s: expected a C-contiguous, aligned array in native byte order, got a view "
                     "that is not; pass numpy.ascontiguousarray(%s)", name, name);
        return 0;
    }
    out->object = array;
    out->data = PyArray_DATA(array);
    out->ndim = PyArray_NDIM(array);
    out->size = PyArray_SIZE(array);
    for (int i = 0; i < out->ndim; i++)
        out->dim[i] = PyArray_DIM(array, i);
    return 1;
}

int wasi_need_real(PyObject *object, int ndim, const char *name, wasi_array *out, int *typenum)
{
    *typenum = PyArray_Check(object) ? PyArray_TYPE((PyArrayObject *)object) : NPY_NOTYPE;
    if (*typenum != NPY_FLOAT32 && *typenum != NPY_FLOAT64)
        return refuse(PyExc_TypeError, name, PyUnicode_FromString("a float32 or float64 array"), object);
    return wasi_need_array(object, *typenum, ndim, name, out);
}

int wasi_maybe_array(PyObject *object, int typenum, int ndim, const char *name, wasi_array *out)
{
    *out = (wasi_array){0};
    return object == NULL || object == Py_None || wasi_need_array(object, typenum, ndim, name, out);
}

int wasi_need_writable(PyObject *object, int typenum, int ndim, const char *name, wasi_array *out)
{
    if (!wasi_need_array(object, typenum, ndim, name, out))
        return 0;
    if (!PyArray_ISWRITEABLE(out->object)) {
        PyErr_Format(PyExc_ValueError, "%s: expected a writable array, got a read-only one", name);
        return 0;
    }
    return 1;
}

int wasi_need_dim(const wasi_array *array, int axis, npy_intp expected, const char *name, const char *why)
{
    if (array->dim[axis] == expected)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s.shape[%d]: expected %zd (%s), got %zd", name, axis, (Py_ssize_t)expected, why,
                 (Py_ssize_t)array->dim[axis]);
    return 0;
}

int wasi_need_same_shape(const wasi_array *a, const char *a_name, const wasi_array *b, const char *b_name)
{
    if (a->ndim == b->ndim && PyArray_CompareLists(a->dim, b->dim, a->ndim))
        return 1;
    PyObject *shape = PyObject_GetAttrString((PyObject *)b->object, "shape");
    if (shape == NULL)
        return 0;
    PyObject *expected = PyUnicode_FromFormat("shape %R (that of %s)", shape, b_name);
    Py_DECREF(shape);
    return refuse(PyExc_ValueError, a_name, expected, (PyObject *)a->object);
}

/* The range of bytes from the first to the last element of an array that has some. */
static void extent(PyArrayObject *a, const char **begin, const char **end)
{
    *begin = PyArray_BYTES(a);
    *end = *begin + PyArray_ITEMSIZE(a);
    for (int i = 0; i < PyArray_NDIM(a); i++)
        *(PyArray_STRIDE(a, i) < 0 ? begin : end) += (PyArray_DIM(a, i) - 1) * PyArray_STRIDE(a, i);
}

/* Whether the arrays share memory: contiguous ones where their ranges meet, others (q, k and v of one array) as NumPy says,
 * which takes those for sharing that are too hard to tell. */
static int overlap(PyArrayObject *a, PyArrayObject *b)
{
    const char *a0, *a1, *b0, *b1;
    if (PyArray_SIZE(a) == 0 || PyArray_SIZE(b) == 0)
        return 0;
    extent(a, &a0, &a1);
    extent(b, &b0, &b1);
    if (a0 >= b1 || b0 >= a1)
        return 0;
    if (PyArray_IS_C_CONTIGUOUS(a) && PyArray_IS_C_CONTIGUOUS(b))
        return 1;
    PyObject *numpy = PyImport_ImportModule("numpy");
    PyObject *answer = numpy ? PyObject_CallMethod(numpy, "may_share_memory", "OOi", a, b, 1000) : NULL;
    int apart = answer == Py_False;
    Py_XDECREF(answer);
    Py_XDECREF(numpy);
    PyErr_Clear(); /* without memory for the question: refused */
    return !apart;
}

int wasi_need_apart(int n_written, const wasi_operand *operands, int n)
{
    for (int i = 0; i < n_written; i++)
        for (int j = i + 1; j < n; j++) {
            PyObject *a = operands[i].object, *b = operands[j].object;
            if (a && b && PyArray_Check(a) && PyArray_Check(b) && overlap((PyArrayObject *)a, (PyArrayObject *)b)) {
                PyErr_Format(PyExc_ValueError, "%s: expected memory of its own, got an array that overlaps %s",
                             operands[i].name, operands[j].name);
                return 0;
            }
        }
    return 1;
}

int wasi_need_in_place(PyArrayObject *out, const char *out_name, const wasi_array *in, const char *in_name)
{
    if (in->object == NULL || !overlap(out, in->object) ||
        (WASI_DATA(out) == in->data && PyArray_NBYTES(out) == PyArray_NBYTES(in->object)))
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: expected memory of its own or exactly that of %s, got an array that overlaps it",
                 out_name, in_name);
    return 0;
}

int wasi_need_rows(PyObject *object, const char *name, wasi_array *out)
{
    if (!wasi_need_f32(object, -1, name, out))
        return 0;
    if (out->ndim < 1) {
        PyErr_Format(PyExc_ValueError, "%s: expected at least 1 dimension, got 0", name);
        return 0;
    }
    return 1;
}

npy_intp wasi_rows_of(const wasi_array *x)
{
    npy_intp M = 1;
    for (int i = 0; i < x->ndim - 1; i++)
        M *= x->dim[i];
    return M;
}

int wasi_need_same_rows(const wasi_array *x, npy_intp M, const char *name)
{
    if (wasi_rows_of(x) == M)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: expected %zd rows, got %zd", name, (Py_ssize_t)M, (Py_ssize_t)wasi_rows_of(x));
    return 0;
}

void wasi_like_rows(const wasi_array *x, npy_intp last, npy_intp *dims)
{
    for (int i = 0; i < x->ndim - 1; i++)
        dims[i] = x->dim[i];
    dims[x->ndim - 1] = last;
}

int wasi_need_channels(PyObject *object, const char *name, const wasi_array *x, wasi_array *out)
{
    return wasi_need_f32(object, 1, name, out) && wasi_need_dim(out, 0, x->dim[x->ndim - 1], name, "x.shape[-1]");
}

int wasi_maybe_sums_like(PyObject *object, const char *name, const wasi_array *like, const char *like_name, wasi_array *out)
{
    *out = (wasi_array){0};
    return object == Py_None || (wasi_need_writable(object, NPY_FLOAT32, like->ndim, name, out) &&
                                 wasi_need_same_shape(out, name, like, like_name));
}

int wasi_maybe_channel_sums(PyObject *object, const char *name, const wasi_array *x, wasi_array *out)
{
    return wasi_maybe_sums(object, name, x->dim[x->ndim - 1], "x.shape[-1]", out);
}

int wasi_maybe_sums(PyObject *object, const char *name, npy_intp n, const char *why, wasi_array *out)
{
    *out = (wasi_array){0};
    return object == Py_None ||
           (wasi_need_writable(object, NPY_FLOAT32, 1, name, out) && wasi_need_dim(out, 0, n, name, why));
}

PyArrayObject *wasi_new_array(int typenum, int ndim, const npy_intp *dims)
{
    return (PyArrayObject *)PyArray_SimpleNew(ndim, dims, typenum);
}

PyArrayObject *wasi_new_scratch(size_t bytes)
{
    if (WASI_RED_ZONE_OF_PIECES)
        bytes = WASI_MAX(bytes, 4096); /* NumPy keeps smaller blocks for others, who may touch what is forbidden here */
    npy_intp dim = (npy_intp)bytes;
    if (bytes > PY_SSIZE_T_MAX) {
        PyErr_NoMemory();
        return NULL;
    }
    return wasi_new_array(NPY_UINT8, 1, &dim);
}

PyArrayObject *wasi_out_array(PyObject *out, int typenum, int ndim, const npy_intp *dims, const char *name)
{
    if (out == NULL || out == Py_None)
        return wasi_new_array(typenum, ndim, dims);
    wasi_array array;
    if (!wasi_need_writable(out, typenum, ndim, name, &array))
        return NULL;
    for (int i = 0; i < ndim; i++)
        if (!wasi_need_dim(&array, i, dims[i], name, "the result's shape"))
            return NULL;
    Py_INCREF(out);
    return (PyArrayObject *)out;
}

PyArrayObject *wasi_out_in_place(PyObject *out_obj, const wasi_array *x, const char *x_name, const wasi_array *y,
                                 const char *y_name)
{
    PyArrayObject *out = wasi_out_array(out_obj, NPY_FLOAT32, x->ndim, x->dim, "out");
    if (out == NULL || (wasi_need_in_place(out, "out", x, x_name) && (y == NULL || wasi_need_in_place(out, "out", y, y_name))))
        return out;
    Py_DECREF(out);
    return NULL;
}

PyObject *wasi_raise(wasi_status status, const char *where)
{
    PyObject *exception = PyExc_RuntimeError;
    switch (status) {
    case WASI_ERR_NONFINITE:
    case WASI_ERR_RANK:     exception = PyExc_ArithmeticError; break;
    case WASI_ERR_RANGE:    exception = PyExc_ValueError; break;
    case WASI_ERR_OVERFLOW: exception = PyExc_OverflowError; break;
    case WASI_ERR_MEMORY:   return PyErr_NoMemory();
    case WASI_ERR_LAPACK:
    case WASI_OK:           break;
    }
    PyErr_Format(exception, "%s: %s", where, wasi_status_text(status));
    return NULL;
}

PyObject *wasi_raise_index(const wasi_array *indices, npy_intp limit, const char *name, const char *what)
{
    const int64_t *index = indices->data;
    npy_intp i = 0;
    while (i < indices->size - 1 && index[i] >= 0 && index[i] < limit)
        i++;
    return PyErr_Format(PyExc_ValueError, "%s: expected %s 0 to %zd, got %lld at place %zd", name, what,
                        (Py_ssize_t)limit - 1, (long long)index[i], (Py_ssize_t)i);
}

PyObject *wasi_finish(wasi_status status, PyArrayObject *result, const char *where)
{
    if (status == WASI_OK)
        return (PyObject *)result;
    Py_DECREF(result);
    return wasi_raise(status, where);
}
