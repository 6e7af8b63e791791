#include "bindings/linalg.h"
#include "bindings/tables.h"

#include "kernels/wsi.h"

/* L (O x K), R (K x I) and their gradients, all of one type. */
typedef struct {
    wasi_array L, R, dL, dR;
    int typenum;
} factors;

static int need_factors(PyObject *L, PyObject *R, PyObject *dL, PyObject *dR, factors *f)
{
    if (!wasi_need_matrix(L, "L", &f->L, &f->typenum) || !wasi_need_array(R, f->typenum, 2, "R", &f->R) ||
        !wasi_need_dim(&f->R, 0, f->L.dim[1], "R", "L.shape[1]"))
        return 0;
    npy_intp O = f->L.dim[0], K = f->L.dim[1], I = f->R.dim[1];
    if (K > O || K > I) {
        PyErr_Format(PyExc_ValueError, "L: expected a rank of at most %zd, the smaller side of L R, got %zd",
                     (Py_ssize_t)WASI_MIN(O, I), (Py_ssize_t)K);
        return 0;
    }
    return wasi_need_array(dL, f->typenum, 2, "dL", &f->dL) && wasi_need_same_shape(&f->dL, "dL", &f->L, "L") &&
           wasi_need_array(dR, f->typenum, 2, "dR", &f->dR) && wasi_need_same_shape(&f->dR, "dR", &f->R, "R");
}

static PyObject *wsi_gradient_norm2(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"L", "R", "dL", "dR", NULL};
    PyObject *L, *R, *dL, *dR, *result = NULL;
    PyArrayObject *Tri = NULL, *scratch = NULL;
    factors f;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO:wsi_gradient_norm2", names, &L, &R, &dL, &dR) ||
        !need_factors(L, R, dL, dR, &f))
        return NULL;
    npy_intp O = f.L.dim[0], K = f.L.dim[1], I = f.R.dim[1];
    int n_threads = wasi_get_num_threads();
    size_t bytes = WASI_CALL(f.typenum, wsi_gradient_norm2_work, O, I, K, n_threads);
    if ((Tri = wasi_new_array(NPY_FLOAT64, 2, (npy_intp[]){K, K})) == NULL ||
        (scratch = wasi_new_scratch(bytes)) == NULL)
        goto done;
    double norm2;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(f.typenum, wsi_gradient_norm2, &norm2, WASI_DATA(Tri), f.L.data, f.R.data, f.dL.data,
                                   f.dR.data, O, I, K, WASI_DATA(scratch), n_threads));
    const wasi_named inputs[] = {{"L", &f.L}, {"R", &f.R}, {"dL", &f.dL}, {"dR", &f.dR}};
    result = status == WASI_OK ? Py_BuildValue("dO", norm2, Tri)
                               : wasi_raise_for(status, "wsi_gradient_norm2", inputs, 4);
done:
    Py_XDECREF(Tri);
    Py_XDECREF(scratch);
    return result;
}

/* The state arrays that a rule needs: present, of the right shape, writable; the others absent. */
static int need_state(PyObject *object, int wanted, const char *name, const factors *f, const wasi_array *like,
                      const char *like_name, wasi_array *out)
{
    *out = (wasi_array){0};
    if (!wanted) {
        if (object == Py_None)
            return 1;
        PyErr_Format(PyExc_ValueError, "%s: expected None for this rule", name);
        return 0;
    }
    return wasi_need_writable(object, f->typenum, 2, name, out) && wasi_need_same_shape(out, name, like, like_name);
}

static int need_options(const wasi_wsi_options *o)
{
    return wasi_need_number(o->lr >= 0 && o->lr <= 1e300, "lr", "a finite number >= 0", o->lr) &&
           wasi_need_number(o->grad_scale >= -1e300 && o->grad_scale <= 1e300, "grad_scale", "a finite number",
                            o->grad_scale) &&
           wasi_need_number(o->weight_decay >= 0 && o->weight_decay <= 1e300, "weight_decay", "a finite number >= 0",
                            o->weight_decay) &&
           wasi_need_number(o->momentum >= 0 && o->momentum < 1, "momentum", "a number in [0, 1)", o->momentum) &&
           wasi_need_number(o->beta1 >= 0 && o->beta1 < 1, "beta1", "a number in [0, 1)", o->beta1) &&
           wasi_need_number(o->beta2 >= 0 && o->beta2 < 1, "beta2", "a number in [0, 1)", o->beta2) &&
           wasi_need_number(o->epsilon > 0 && o->epsilon <= 1, "epsilon", "a number in (0, 1]", o->epsilon) &&
           wasi_need_number(o->step >= 1, "step", "a number >= 1", (double)o->step);
}

static PyObject *wsi_step(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"L",        "R",     "dL",    "dR",      "rule", "lr", "grad_scale", "weight_decay",
                            "momentum", "beta1", "beta2", "epsilon", "step", "mA", "mB",         "vA",
                            "vB",       "Tri",   NULL};
    PyObject *L, *R, *dL, *dR, *mA_obj = Py_None, *mB_obj = Py_None, *vA_obj = Py_None, *vB_obj = Py_None;
    PyObject *Tri_obj = Py_None;
    wasi_wsi_options o = {.grad_scale = 1, .momentum = 0.9, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8};
    long long step = 1;
    int rule;
    factors f;
    wasi_array mA, mB, vA, vB, Tri;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOid|ddddddLOOOOO:wsi_step", names, &L, &R, &dL, &dR, &rule,
                                     &o.lr, &o.grad_scale, &o.weight_decay, &o.momentum, &o.beta1, &o.beta2,
                                     &o.epsilon, &step, &mA_obj, &mB_obj, &vA_obj, &vB_obj, &Tri_obj))
        return NULL;
    o.step = step;
    if (!wasi_need_number(rule >= WASI_WSI_SGD && rule <= WASI_WSI_ADAMW, "rule", "0, 1 or 2", rule) || !need_options(&o) ||
        !need_factors(L, R, dL, dR, &f) || !wasi_need_writable(L, f.typenum, 2, "L", &f.L) ||
        !wasi_need_writable(R, f.typenum, 2, "R", &f.R))
        return NULL;
    o.rule = (wasi_wsi_rule)rule;
    int first = o.rule != WASI_WSI_SGD, second = o.rule == WASI_WSI_ADAMW;
    npy_intp O = f.L.dim[0], K = f.L.dim[1], I = f.R.dim[1];
    if (!need_state(mA_obj, first, "mA", &f, &f.R, "R", &mA) || !need_state(mB_obj, first, "mB", &f, &f.L, "L", &mB) ||
        !need_state(vA_obj, second, "vA", &f, &f.R, "R", &vA) ||
        !need_state(vB_obj, second, "vB", &f, &f.L, "L", &vB) ||
        !wasi_maybe_array(Tri_obj, NPY_FLOAT64, 2, "Tri", &Tri) ||
        (Tri.data &&
         (!wasi_need_dim(&Tri, 0, K, "Tri", "L.shape[1]") || !wasi_need_dim(&Tri, 1, K, "Tri", "L.shape[1]"))))
        return NULL;
    if (!WASI_NEED_APART(6, {"L", L}, {"R", R}, {"mA", mA_obj}, {"mB", mB_obj}, {"vA", vA_obj}, {"vB", vB_obj}, {"dL", dL},
                         {"dR", dR}, {"Tri", Tri_obj}))
        return NULL;

    int n_threads = wasi_get_num_threads();
    PyArrayObject *scratch = wasi_new_scratch(WASI_CALL(f.typenum, wsi_step_work, o.rule, O, I, K, n_threads));
    if (scratch == NULL)
        return NULL;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(f.typenum, wsi_step, f.L.data, f.R.data, mA.data, mB.data, vA.data, vB.data,
                                   Tri.data, f.dL.data, f.dR.data, &o, O, I, K, WASI_DATA(scratch), n_threads));
    Py_DECREF(scratch);
    const wasi_named inputs[] = {{"L", &f.L}, {"R", &f.R}, {"dL", &f.dL}, {"dR", &f.dR},  {"mA", &mA},
                                 {"mB", &mB}, {"vA", &vA}, {"vB", &vB},   {"Tri", &Tri}};
    return status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise_for(status, "wsi_step", inputs, 9);
}

PyMethodDef wasi_wsi_methods[] = {
    WASI_METHOD("wsi_gradient_norm2", wsi_gradient_norm2, "wsi_gradient_norm2(L, R, dL, dR) -> norm2, Tri"),
    WASI_METHOD("wsi_step", wsi_step,
                "wsi_step(L, R, dL, dR, rule, lr, grad_scale=1, weight_decay=0, momentum=0.9, beta1=0.9, beta2=0.999, "
                "epsilon=1e-8, step=1, mA=None, mB=None, vA=None, vB=None, Tri=None)"),
    {NULL},
};
