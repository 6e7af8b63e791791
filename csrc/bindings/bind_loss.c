#include "bindings/tables.h"

#include "kernels/cross_entropy.h"

/* Class labels (B,) int64 or soft targets (B, V) float32. */
static int need_targets(PyObject *object, const wasi_array *logits, wasi_array *out)
{
    int soft = PyArray_Check(object) && PyArray_TYPE((PyArrayObject *)object) == NPY_FLOAT32;
    if (soft)
        return wasi_need_f32(object, 2, "targets", out) && wasi_need_same_shape(out, "targets", logits, "logits");
    return wasi_need_array(object, NPY_INT64, 1, "targets", out) &&
           wasi_need_dim(out, 0, logits->dim[0], "targets", "logits.shape[0]");
}

static PyObject *cross_entropy(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"logits", "targets", "label_smoothing", "need_gradient", "class_weights", "dlogits_out",
                            NULL};
    PyObject *logits_obj, *targets_obj, *weights_obj = Py_None, *out_obj = Py_None, *result = NULL;
    double smoothing = 0;
    int need_gradient = 1;
    wasi_array logits, targets, weights;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|dpOO:cross_entropy", names, &logits_obj, &targets_obj,
                                     &smoothing, &need_gradient, &weights_obj, &out_obj))
        return NULL;
    if (!wasi_need_f32(logits_obj, 2, "logits", &logits) || !need_targets(targets_obj, &logits, &targets) ||
        !wasi_maybe_array(weights_obj, NPY_FLOAT32, 1, "class_weights", &weights) ||
        (weights.data && !wasi_need_dim(&weights, 0, logits.dim[1], "class_weights", "logits.shape[1]")) ||
        !WASI_NEED_APART(1, {"dlogits_out", out_obj}, {"targets", targets_obj}, {"class_weights", weights_obj}))
        return NULL;
    if (logits.size == 0) {
        PyErr_SetString(PyExc_ValueError, "logits: expected at least one row and one class, got none");
        return NULL;
    }
    if (!wasi_need_number(smoothing >= 0 && smoothing < 1, "label_smoothing", "a number in [0, 1)", smoothing))
        return NULL;

    int n_threads = wasi_get_num_threads(), soft = targets.ndim == 2;
    PyArrayObject *dlogits = NULL, *work = NULL;
    if ((need_gradient && ((dlogits = wasi_out_array(out_obj, NPY_FLOAT32, 2, logits.dim, "dlogits_out")) == NULL ||
                           !wasi_need_in_place(dlogits, "dlogits_out", &logits, "logits"))) ||
        (work = wasi_new_scratch(wasi_cross_entropy_work(logits.dim[0], logits.dim[1], n_threads))) == NULL)
        goto done;
    double loss = 0;
    int64_t n_correct = 0;
    wasi_status status;
    WASI_NO_GIL(status = wasi_cross_entropy(&loss, &n_correct, dlogits ? WASI_DATA(dlogits) : NULL, logits.data, soft ?
                                            NULL : targets.data, soft ? targets.data : NULL, weights.data,
                                            (float)smoothing, logits.dim[0], logits.dim[1], WASI_DATA(work),
                                            n_threads));
    if (status == WASI_ERR_RANGE)
        wasi_raise_index(&targets, logits.dim[1], "targets", "classes");
    else if (status != WASI_OK)
        wasi_raise(status, "cross_entropy");
    else
        result = Py_BuildValue("dOL", loss, dlogits ? (PyObject *)dlogits : Py_None, (long long)n_correct);
done:
    Py_XDECREF(dlogits);
    Py_XDECREF(work);
    return result;
}

PyMethodDef wasi_loss_methods[] = {
    WASI_METHOD("cross_entropy", cross_entropy,
                "cross_entropy(logits, targets, label_smoothing=0.0, need_gradient=True, class_weights=None, "
                "dlogits_out=None) -> (loss, dlogits, n_correct)"),
    {NULL},
};
