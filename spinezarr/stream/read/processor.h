/* Which instructions may a program use on this processor?
 *
 * The compilers' own answer, __builtin_cpu_supports, needs a runtime library that not all of them have.
 *
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID and XGETBV.
 */
#ifndef SPINEZARR_PROCESSOR_H
#define SPINEZARR_PROCESSOR_H

#if defined(__x86_64__)
#include <cpuid.h>

static inline int processor_has_sse42(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_SSE4_2);
}

static inline int processor_has_avx2(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 6) != 6) return 0; /* the system does not save the registers of SSE and AVX */
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}
#endif

#endif
