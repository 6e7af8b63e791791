/* Instruction sets: chosen once at run time, never assumed at compile time.
 *
 * A source named *_simd.c is plain C (loops that the compiler vectorises, `#pragma omp simd`), compiled
 * by setup.py once per instruction set with -DWASI_ISA=<name>. It defines its functions as
 * WASI_SIMD(f)(...); its header declares them by WASI_SIMD_DECLARE; callers write WASI_PICK(f)(...).
 * Intrinsics are allowed inside `#ifdef WASI_ISA_AVX512` (_AVX2, _DOTPROD), beside the plain-C twin. */
#ifndef WASI_COMMON_ISA_H
#define WASI_COMMON_ISA_H

#define WASI_JOIN_(a, b) a##_##b
#define WASI_JOIN(a, b) WASI_JOIN_(a, b)
#define WASI_SIMD(name) WASI_JOIN(name, WASI_ISA)

typedef enum {
    WASI_ISA_LEVEL_PLAIN = 0, /* what the ABI guarantees: SSE2, NEON */
    WASI_ISA_LEVEL_AVX2,      /* x86: AVX2, FMA, F16C */
    WASI_ISA_LEVEL_AVX512,    /* x86: AVX-512 F, BW, DQ, VL, VNNI */
    WASI_ISA_LEVEL_DOTPROD    /* aarch64: dot product, half precision */
} wasi_isa_level;

extern wasi_isa_level wasi_isa; /* set by wasi_isa_init; the best that this machine and this build have */

void wasi_isa_init(void);
const char *wasi_isa_name(wasi_isa_level level);
/* Switches to a named level ("plain", ...); false where this machine or build lacks it. For tests. */
int wasi_isa_select(const char *name);

#if defined(__x86_64__)
#define WASI_SIMD_DECLARE(ret, name, args) ret name##_plain args; ret name##_avx2 args; ret name##_avx512 args
#define WASI_PICK(name)                                                                                                \
    (wasi_isa == WASI_ISA_LEVEL_AVX512 ? name##_avx512 : wasi_isa == WASI_ISA_LEVEL_AVX2 ? name##_avx2 : name##_plain)
#elif defined(__aarch64__)
#define WASI_SIMD_DECLARE(ret, name, args) ret name##_plain args; ret name##_dotprod args
#define WASI_PICK(name) (wasi_isa == WASI_ISA_LEVEL_DOTPROD ? name##_dotprod : name##_plain)
#else
#define WASI_SIMD_DECLARE(ret, name, args) ret name##_plain args
#define WASI_PICK(name) name##_plain
#endif

#endif
