/* See real32.h. */
#undef real
#undef T
#undef T_PICK
#undef WASI_IS_F32
#define real double
#define T(name) wasi_d##name
#define T_PICK(name) WASI_PICK(wasi_d##name)
#define WASI_IS_F32 0
