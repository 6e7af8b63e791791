/* The method tables that make up wasi._core: one per bind_*.c file, listed in module.c. */
#ifndef WASI_BINDINGS_TABLES_H
#define WASI_BINDINGS_TABLES_H

#include "bindings/convert.h"

extern PyMethodDef wasi_activation_methods[];
extern PyMethodDef wasi_attention_methods[];
extern PyMethodDef wasi_batchnorm_methods[];
extern PyMethodDef wasi_bf16_methods[];
extern PyMethodDef wasi_conv_methods[];
extern PyMethodDef wasi_decoder_methods[];
extern PyMethodDef wasi_embed_methods[];
extern PyMethodDef wasi_knapsack_methods[];
extern PyMethodDef wasi_linalg_methods[];
extern PyMethodDef wasi_linear_methods[];
extern PyMethodDef wasi_loss_methods[];
extern PyMethodDef wasi_norm_methods[];
extern PyMethodDef wasi_optim_methods[];
extern PyMethodDef wasi_quant_methods[];
extern PyMethodDef wasi_rsvd_methods[];
extern PyMethodDef wasi_store_methods[];
extern PyMethodDef wasi_tucker_methods[];
extern PyMethodDef wasi_wsi_methods[];

int wasi_add_arena_type(PyObject *module);

/* Shorthand for a table row of a function that takes keywords. */
#define WASI_METHOD(name, function, doc) {name, (PyCFunction)(void (*)(void))function, METH_VARARGS | METH_KEYWORDS, doc}

#endif
