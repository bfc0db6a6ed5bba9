/* The loops of resample.c over one row. It is included once for each type REAL that values are
 * computed in, and for each set of instructions:
 *
 * NAME(name)   names a function
 * TARGET       attributes of each function
 * REAL, BITS   float and uint32_t, or double and uint64_t
 * ROUND        1.5 times the power of two from which on REAL has no fraction
 * ROUND_BITS   its bits
 *
 * The loops are plain, for the compiler to make vectors of. No product and sum may become one
 * operation, as that rounds once and NumPy rounds twice.
 */

#define LOAD(name, STORED)                                                                         \
    TARGET static void NAME(load_##name)(const void *voxels, void *values, int64_t n) {            \
        const STORED *restrict from = voxels;                                                      \
        REAL *restrict to = values;                                                                \
        for (int64_t i = 0; i < n; i++) to[i] = (REAL)from[i];                                     \
    }

/* Adding ROUND leaves the nearest integer in the lowest bits; of two, the even one. */
#define STORE_INTEGER(name, STORED)                                                                \
    TARGET static void NAME(store_##name)(const void *values, void *out, int64_t n) {              \
        const REAL *restrict from = values;                                                        \
        STORED *restrict to = out;                                                                 \
        for (int64_t i = 0; i < n; i++) {                                                          \
            const REAL moved = from[i] + ROUND;                                                  \
            BITS bits;                                                                             \
            memcpy(&bits, &moved, sizeof(bits));                                                   \
            to[i] = (STORED)(bits - ROUND_BITS);                                                 \
        }                                                                                          \
    }

#define STORE_REAL(name, STORED)                                                                   \
    TARGET static void NAME(store_##name)(const void *values, void *out, int64_t n) {              \
        const REAL *restrict from = values;                                                        \
        STORED *restrict to = out;                                                                 \
        for (int64_t i = 0; i < n; i++) to[i] = (STORED)from[i];                                   \
    }

LOAD(int8, int8_t)
LOAD(uint8, uint8_t)
LOAD(int16, int16_t)
LOAD(uint16, uint16_t)
LOAD(int32, int32_t)
LOAD(uint32, uint32_t)
LOAD(float32, float)
LOAD(float64, double)
STORE_INTEGER(int8, int8_t)
STORE_INTEGER(uint8, uint8_t)
STORE_INTEGER(int16, int16_t)
STORE_INTEGER(uint16, uint16_t)
STORE_INTEGER(int32, int32_t)
STORE_INTEGER(uint32, uint32_t)
STORE_REAL(float32, float)
STORE_REAL(float64, double)

/* Takes the values at some columns. */
static void NAME(select)(const void *values, const int32_t *columns, void *out, int64_t n) {
    const REAL *restrict from = values;
    REAL *restrict to = out;
    for (int64_t i = 0; i < n; i++) {
        to[i] = from[columns[i]];
        __asm__ volatile(""); /* no vectors: to put columns into them takes longer */
    }
}

/* Interpolates between two rows. */
TARGET static void NAME(between_rows)(const void *low_row, const void *high_row, double weight,
                                      void *out, int64_t n) {
    const REAL *restrict low = low_row, *restrict high = high_row;
    REAL *restrict to = out;
    const REAL w = (REAL)weight;
    for (int64_t i = 0; i < n; i++) to[i] = low[i] + w * (high[i] - low[i]);
}

/* Interpolates between the first n columns of a row and its next n columns. */
TARGET static void NAME(within_row)(const void *row, const void *weights, void *out, int64_t n) {
    const REAL *restrict low = row, *restrict high = low + n, *restrict w = weights;
    REAL *restrict to = out;
    for (int64_t i = 0; i < n; i++) to[i] = low[i] + w[i] * (high[i] - low[i]);
}

/* Interpolates between two rows, then within the row between them. */
TARGET static void NAME(between_rows_and_within)(const void *low_row, const void *high_row,
                                                 double weight, const void *weights, void *out,
                                                 int64_t n) {
    const REAL *restrict low = low_row, *restrict high = high_row, *restrict w = weights;
    REAL *restrict to = out;
    const REAL of_row = (REAL)weight;
    for (int64_t i = 0; i < n; i++) {
        const REAL before = low[i] + of_row * (high[i] - low[i]);
        const REAL after = low[n + i] + of_row * (high[n + i] - low[n + i]);
        to[i] = before + w[i] * (after - before);
    }
}

static const Loops NAME(loops) = {
    sizeof(REAL),
    {NAME(load_int8), NAME(load_uint8), NAME(load_int16), NAME(load_uint16), NAME(load_int32),
     NAME(load_uint32), NAME(load_float32), NAME(load_float64)},
    {NAME(store_int8), NAME(store_uint8), NAME(store_int16), NAME(store_uint16), NAME(store_int32),
     NAME(store_uint32), NAME(store_float32), NAME(store_float64)},
    NAME(select),
    NAME(between_rows),
    NAME(within_row),
    NAME(between_rows_and_within),
};

#undef LOAD
#undef STORE_INTEGER
#undef STORE_REAL
