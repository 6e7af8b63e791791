#include "bindings/tables.h"

#include "kernels/knapsack.h"

/* Whether `first` cuts `total` choices into groups of at least one each. */
static int need_groups(const wasi_array *first, npy_intp total)
{
    const int64_t *at = first->data;
    npy_intp n = first->dim[0] - 1;
    int fits = n >= 0 && at[0] == 0 && at[n] == total;
    for (npy_intp g = 0; fits && g < n; g++)
        fits = at[g + 1] > at[g];
    if (!fits)
        PyErr_Format(PyExc_ValueError, "first: expected rising offsets from 0 to the %zd choices", (Py_ssize_t)total);
    return fits;
}

static PyObject *knapsack(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"values", "weights", "first", "limit", "max_states", NULL};
    PyObject *values_obj, *weights_obj, *first_obj, *result = NULL;
    double limit;
    Py_ssize_t max_states = 1 << 20;
    wasi_array values, weights, first;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOd|n:knapsack", names, &values_obj, &weights_obj, &first_obj,
                                     &limit, &max_states))
        return NULL;
    if (!wasi_need_array(values_obj, NPY_FLOAT64, 1, "values", &values) ||
        !wasi_need_array(weights_obj, NPY_FLOAT64, 1, "weights", &weights) ||
        !wasi_need_same_shape(&weights, "weights", &values, "values") ||
        !wasi_need_array(first_obj, NPY_INT64, 1, "first", &first) || !need_groups(&first, values.size))
        return NULL;
    if (max_states < 1 || max_states > INT32_MAX)
        return PyErr_Format(PyExc_ValueError, "max_states: expected 1 to %d, got %zd", INT32_MAX, max_states);

    npy_intp n = first.dim[0] - 1;
    PyArrayObject *choice = NULL, *work = NULL;
    if ((choice = wasi_new_array(NPY_INT32, 1, &n)) == NULL ||
        (work = wasi_new_scratch(wasi_knapsack_work(n, values.size, max_states))) == NULL)
        goto done;
    double value = 0, weight = 0;
    wasi_status status;
    WASI_NO_GIL(status = wasi_knapsack(WASI_DATA(choice), &value, &weight, values.data, weights.data, first.data, n,
                                       limit, max_states, WASI_DATA(work)));
    if (status == WASI_ERR_MEMORY)
        PyErr_Format(PyExc_MemoryError, "knapsack: the proof of optimality takes more than max_states = %zd sums",
                     max_states);
    else if (status != WASI_OK && status != WASI_ERR_RANGE)
        wasi_raise(status, "knapsack");
    else
        result = Py_BuildValue("OddO", choice, value, weight, status == WASI_OK ? Py_True : Py_False);
done:
    Py_XDECREF(choice);
    Py_XDECREF(work);
    return result;
}

PyMethodDef wasi_knapsack_methods[] = {
    WASI_METHOD("knapsack", knapsack,
                "knapsack(values, weights, first, limit, max_states=1048576) -> (choice, value, weight, feasible)"),
    {NULL},
};
