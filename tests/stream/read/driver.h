/* What the programs that run the kernel under sanitizers share: cases and their random numbers. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int64_t number; /* of the case */
static uint64_t state;

static void say_number(void) { fprintf(stderr, "in case %lld\n", (long long)number); }

static void aborted(int signal_number) { /* by a sanitizer */
    say_number();
    _exit(128 + signal_number);
}

static void require(int is_true, const char *what) {
    if (is_true) return;
    fprintf(stderr, "%s ", what);
    say_number();
    exit(1);
}

static uint64_t draw(void) { /* splitmix64 (Steele, Lea, Flood 2014) */
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static int64_t below(int64_t n) { return (int64_t)(draw() % (uint64_t)n); }

static void *exactly(int64_t n) {
    void *memory = malloc((size_t)n);
    require(memory != NULL, "no memory");
    return memory;
}

/* A number that is right, nearly right, or far from it. */
__attribute__((unused)) static int64_t made_up(int64_t right) {
    static const int64_t numbers[] = {
        INT64_MIN, INT64_MIN + 20, -((int64_t)1 << 32), INT32_MIN, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7,
        8, 9, 12, 15, 16, 17, 19, 20, 21, 36, 127, 128, 255, 256, 65535, 65536, (1 << 24) - 1,
        1 << 24, (1 << 24) + 1, 1 << 30, INT32_MAX, (int64_t)1 << 31, UINT32_MAX, (int64_t)1 << 32,
        ((int64_t)1 << 32) + 8, (int64_t)1 << 61, (int64_t)1 << 62, INT64_MAX - 20, INT64_MAX};
    switch (below(6)) {
    case 0: return (int64_t)((uint64_t)right + (uint64_t)below(5) - 2);
    case 1: return (int64_t)((uint64_t)right + ((uint64_t)1 << (32 + below(32))));
    case 2: return (int64_t)draw();
    default: return numbers[below((int64_t)(sizeof(numbers) / sizeof(*numbers)))];
    }
}

/* Starts a case, which is the same wherever it runs. */
static void start_case(int64_t of_case) {
    number = of_case;
    state = (uint64_t)of_case * 0xD1342543DE82EF95u;
}
