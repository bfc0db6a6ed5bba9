/* Decodes sound and damaged LZ4 streams: lz4_driver FIRST COUNT.
 *
 * It is compiled together with the kernel, under sanitizers. Each buffer is an allocation of just its
 * size. A decoder that goes byte by byte says what is right (lz4_Block_format.md of LZ4).
 *
 * Cases are numbered; case n is the same wherever it runs. A failure names it.
 */
#include "kernel.c"

#include "driver.h"

enum { MOST_BYTES = 3000 };

/* A stream that is being made, and what it decodes to. */
typedef struct {
    uint8_t in[2 * MOST_BYTES], out[MOST_BYTES];
    int64_t n_in, n_out;
} Made;

static int64_t one_of(const int64_t *numbers, int64_t n) { return numbers[below(n)]; }
#define ONE_OF(...)                                                                                \
    one_of((const int64_t[]){__VA_ARGS__},                                                         \
           (int64_t)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))

static void put_more(Made *made, int64_t length) { /* what follows a length of 15 in the token */
    if (length < 15) return;
    for (length -= 15; length >= 255; length -= 255) made->in[made->n_in++] = 255;
    made->in[made->n_in++] = (uint8_t)length;
}

static void put_literals(Made *made, int64_t n, int64_t in_token) {
    made->in[made->n_in++] = (uint8_t)((n < 15 ? n : 15) << 4 | in_token);
    put_more(made, n);
    for (; n > 0; n--) made->in[made->n_in++] = made->out[made->n_out++] = (uint8_t)draw();
}

/* A stream of sequences with the lengths and offsets at which the decoder changes its way. */
static void make_stream(Made *made, int64_t size) {
    const int literals_are_rare = below(2) == 1;
    made->n_in = made->n_out = 0;
    for (;;) {
        const int64_t room = size - made->n_out - 12;
        int64_t n_literals = literals_are_rare ? ONE_OF(0, 0, 1, 2, 5)
                                               : ONE_OF(0, 1, 14, 15, 16, 17, 31, 32, 33, 34, 64, 200);
        if (!below(literals_are_rare ? 40 : 10)) n_literals = ONE_OF(15, 33, 269, 270, 271, 600);
        if (n_literals >= room || (n_literals == 0 && made->n_out == 0)) break;
        int64_t n = ONE_OF(4, 5, 7, 18, 19, 20, 31, 32, 33, 48, 63, 64, 65, 66, 97, 273, 274, 275, 700);
        if (n > room - n_literals + 7) n = room - n_literals + 7;
        put_literals(made, n_literals, n - 4 < 15 ? n - 4 : 15);
        int64_t offset = ONE_OF(1, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, MOST_BYTES);
        if (below(3) == 0) offset = 1 + below(MOST_BYTES);
        if (offset > made->n_out) offset = made->n_out;
        made->in[made->n_in++] = (uint8_t)offset, made->in[made->n_in++] = (uint8_t)(offset >> 8);
        put_more(made, n - 4);
        for (; n > 0; n--, made->n_out++) made->out[made->n_out] = made->out[made->n_out - offset];
    }
    put_literals(made, size - made->n_out, 0);
}

/* Decodes byte by byte until ``wanted`` bytes are there; returns whether all that was read is valid. */
static int decode_plainly(const uint8_t *in, int64_t n, uint8_t *out, int64_t size, int64_t wanted) {
    int64_t at = 0, to = 0;
    while (to < wanted) {
        if (at >= n) return 0;
        const int token = in[at++];
        for (int half = 0; half < 2; half++) {
            int64_t length = half ? token & 15 : token >> 4, offset = 0;
            if (half) {
                if (at == n) return to == size;
                if (to >= wanted) return 1;
                if (n - at < 3) return 0;
                offset = in[at] | in[at + 1] << 8, at += 2;
            }
            for (int more = 255 * (length == 15); more == 255;) {
                if (at >= n) return 0;
                length += more = in[at++];
            }
            length += half ? 4 : 0;
            if (length > size - to || (half ? offset == 0 || offset > to : length > n - at)) return 0;
            for (; length > 0; length--, to++) out[to] = half ? out[to - offset] : in[at++];
        }
    }
    return 1;
}

static void damage(Made *made) {
    for (int64_t changes = 1 + below(3); changes > 0; changes--) {
        const int64_t at = below(made->n_in), left = made->n_in - at;
        switch (below(6)) {
        case 0: made->in[at] ^= (uint8_t)(1 << below(8)); break;
        case 1: made->in[at] = (uint8_t)draw(); break;
        case 2: memset(made->in + at, 255, (size_t)(1 + below(left < 8 ? left : 8))); break;
        case 3: memset(made->in + at, 0, (size_t)(1 + below(left < 8 ? left : 8))); break;
        default: made->n_in = 1 + below(made->n_in); break;
        }
    }
}

/* Returns whether the stream of the case was valid. */
static int run_case(void) {
    static Made made;
    static uint8_t expected[MOST_BYTES];
    int64_t size = 1 + below(MOST_BYTES), wanted;
    make_stream(&made, size);
    require(made.n_out == size && made.n_in < (int64_t)sizeof made.in, "a stream of another size");
    const int is_sound = below(2) == 1;
    if (!is_sound) damage(&made);
    wanted = below(2) ? size : 1 + below(size);
    if (!is_sound && !below(4)) size = wanted = 1 + below(size);
    const int is_valid = decode_plainly(made.in, made.n_in, expected, size, wanted);
    require(is_valid || !is_sound, "the plain decoder refuses a sound stream");
    uint8_t *const in = exactly(made.n_in), *const out = exactly(size + SLACK);
    memcpy(in, made.in, (size_t)made.n_in);
    for (int fill = 0; fill < 2; fill++) {
        memset(out, fill ? 0xA5 : 0x5A, (size_t)(size + SLACK));
        require(lz4(in, made.n_in, out, size, wanted) == is_valid, "another verdict");
        require(!is_valid || !memcmp(out, expected, (size_t)wanted), "other bytes");
    }
    free(in), free(out);
    return is_valid;
}

int main(int argc, char **argv) {
    require(argc == 3, "lz4_driver FIRST COUNT");
    const int64_t first = atoll(argv[1]), count = atoll(argv[2]);
    signal(SIGABRT, aborted);
    int64_t n_valid = 0;
    for (int64_t i = first; i < first + count; i++) {
        start_case(i);
        n_valid += run_case();
    }
    printf("%lld cases of LZ4: %lld valid\n", (long long)count, (long long)n_valid);
    return 0;
}
