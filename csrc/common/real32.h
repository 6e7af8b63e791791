/* One source for two types: a template "<name>_real.h" says `real` and T(name), and <name>.c includes it twice,
 * after this header (real = float, T(name) = wasi_sname) and after real64.h (double, wasi_dname). */
#undef real
#undef T
#undef T_PICK
#undef WASI_IS_F32
#define real float
#define T(name) wasi_s##name
#define T_PICK(name) WASI_PICK(wasi_s##name) /* the same for a function of a *_simd.c */
#define WASI_IS_F32 1
