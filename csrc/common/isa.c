#include "common/isa.h"

#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

wasi_isa_level wasi_isa = WASI_ISA_LEVEL_PLAIN;

static int has(wasi_isa_level level)
{
    switch (level) {
    case WASI_ISA_LEVEL_PLAIN:
        return 1;
#if defined(__x86_64__)
    case WASI_ISA_LEVEL_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); /* F16C came before AVX2 */
    case WASI_ISA_LEVEL_AVX512:
        return has(WASI_ISA_LEVEL_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__) && defined(__linux__)
    case WASI_ISA_LEVEL_DOTPROD:
        return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) && (getauxval(AT_HWCAP) & HWCAP_ASIMDHP);
#endif
    default:
        return 0;
    }
}

void wasi_isa_init(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    for (int level = WASI_ISA_LEVEL_PLAIN; level <= WASI_ISA_LEVEL_DOTPROD; level++)
        if (has((wasi_isa_level)level))
            wasi_isa = (wasi_isa_level)level;
}

const char *wasi_isa_name(wasi_isa_level level)
{
    static const char *const names[] = {"plain", "avx2", "avx512", "dotprod"};
    return names[level];
}

int wasi_isa_select(const char *name)
{
    for (int level = WASI_ISA_LEVEL_PLAIN; level <= WASI_ISA_LEVEL_DOTPROD; level++) {
        if (strcmp(name, wasi_isa_name((wasi_isa_level)level)) == 0 && has((wasi_isa_level)level)) {
            wasi_isa = (wasi_isa_level)level;
            return 1;
        }
    }
    return 0;
}
