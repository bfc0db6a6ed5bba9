/* Runs the resampling of the kernel on made-up tables: resample_driver FIRST COUNT.
 *
 * It is compiled together with resample.c, under sanitizers. Each buffer is an allocation of just its
 * size. Each case runs twice, with other bytes in the memory that the code was given: once with the
 * instructions of this processor, and once with those that all have. Every value is compared with one
 * that is computed alone.
 */
#include "resample.c"

#include "driver.h"

enum { MOST_ROWS = 3 };

typedef struct {
    uint8_t *source, *out, *marks; /* memory; which bytes of ``out`` are values */
    int64_t source_bytes, out_bytes;
    double *positions[3];
    int is_sound;
} Owned;

/* Draws the strides of an array of a shape; returns the bytes of its memory and its first voxel. */
static int64_t make_strides(int64_t *strides, const int64_t *shape, int64_t item, int is_dense,
                            int64_t *first) {
    int64_t step = item, before = 0, behind = 0;
    for (int axis = 2; axis >= 0; axis--) {
        if (axis < 2 || !is_dense) step *= below(3) ? 1 : 2;
        strides[axis] = (axis == 2 && is_dense) || below(5) ? step : -step;
        const int64_t reach = strides[axis] * (shape[axis] - 1);
        if (reach < 0) before -= reach; else behind += reach;
        step *= shape[axis];
    }
    *first = before;
    return before + behind + item;
}

static int64_t place_in(const int64_t *strides, int64_t z, int64_t y, int64_t x) {
    return z * strides[0] + y * strides[1] + x * strides[2];
}

/* Bytes of voxels that are usual, extreme, or not finite. */
static void make_voxel(uint8_t *at, int64_t type) {
    static const double odd[] = {0, -0.0, 1e-42, -1e-310, 1e30, -1e300, 65535, 2147483647, 0.5, -1.5};
    double value = below(4) ? (double)(below(4000) - 1024) : odd[below(10)];
    if (!below(30)) value = below(2) ? __builtin_inf() : -__builtin_inf();
    if (!below(60)) value = __builtin_nan("");
    const float narrow = (float)value;
    uint64_t bits = draw();
    if (below(4)) bits = (uint64_t)(below(4000) - 1024);
    if (type == FLOAT64) memcpy(at, &value, sizeof(value));
    else if (type == FLOAT32) memcpy(at, &narrow, sizeof(narrow));
    else memcpy(at, &bits, (size_t)itemsizes[type]);
}

static void make_positions(double *positions, int64_t n, int64_t side) {
    const int kind = (int)below(5);
    const double step = (double)below(1000) / 300, start = (double)below(1000) / 1000;
    for (int64_t i = 0; i < n; i++) {
        double at = kind == 0   ? (double)below(side)
                    : kind == 1 ? (double)i
                    : kind == 2 ? (double)(draw() >> 11) * 0x1p-53 * (double)side
                    : kind == 3 ? start + (double)i * step
                                : (double)below(2 * side) / 2;
        if (at > (double)(side - 1)) at = (double)(side - 1);
        positions[i] = at;
    }
}

static void make_row(Resampling *row, Owned *owned) {
    memset(row, 0, sizeof(*row));
    owned->is_sound = 1;
    row->source_type = below(N_TYPES);
    row->out_type = below(2) ? row->source_type : below(N_TYPES);
    row->is_linear = below(3) > 0;
    row->status = -1;
    for (int axis = 0; axis < 3; axis++) {
        row->source_shape_zyx[axis] = 1 + below(axis == 2 && below(2) ? 70 : 7);
        row->out_shape_zyx[axis] = 1 + below(axis == 2 && below(2) ? 70 : 7);
    }
    /* So many columns that only a few rows are kept. */
    if (!below(12)) row->out_shape_zyx[2] = 1000 + below(9000);
    const int64_t item = itemsizes[row->source_type];
    int64_t first;
    owned->source_bytes =
        make_strides(row->source_stride_zyx, row->source_shape_zyx, item, (int)below(4), &first);
    owned->source = exactly(owned->source_bytes);
    row->source = owned->source + first;
    for (int64_t at = 0; at + item <= owned->source_bytes; at += item)
        make_voxel(owned->source + at, row->source_type);
    owned->out_bytes = make_strides(row->out_stride_zyx, row->out_shape_zyx,
                                    itemsizes[row->out_type], (int)below(3), &first);
    owned->out = exactly(owned->out_bytes), owned->marks = exactly(owned->out_bytes);
    row->out = owned->out + first;
    memset(owned->marks, 0, (size_t)owned->out_bytes);
    for (int axis = 0; axis < 3; axis++) {
        const int64_t n = row->out_shape_zyx[axis];
        owned->positions[axis] = exactly(n * (int64_t)sizeof(double));
        make_positions(owned->positions[axis], n, row->source_shape_zyx[axis]);
        row->position_zyx[axis] = owned->positions[axis];
    }
    const int loses_fractions = row->source_type >= FLOAT32 && row->out_type < FLOAT32;
    if (row->is_linear ? loses_fractions : row->source_type != row->out_type) owned->is_sound = 0;
}

/* A number outside of 1 to the largest side. */
static int64_t no_side(void) {
    const int64_t n = made_up(MAX_SIDE);
    return n < 1 || n > MAX_SIDE ? n : -n;
}

/* Makes a row wrong in one way. Addresses, and strides and shapes that belong to them, are true. */
static void spoil(Resampling *row, Owned *owned) {
    const int axis = (int)below(3);
    owned->is_sound = 0;
    switch (below(7)) {
    case 0: row->source_shape_zyx[axis] = no_side(); break;
    case 1: row->out_shape_zyx[axis] = no_side(); break;
    case 2: row->source_type = below(2) ? N_TYPES + below(9) : -1 - below(9); break;
    case 3: row->out_type = below(2) ? made_up(0) | N_TYPES : -1 - below(9); break;
    case 4: {
        const int64_t item = itemsizes[row->source_type];
        if (item == 1) row->out_type = -1;
        else row->source_stride_zyx[axis] += 1 + below(item - 1);
        break;
    }
    case 5: {
        static const double numbers[] = {-1e-300, -1, -1e300, 1e300};
        const int64_t side = row->source_shape_zyx[axis];
        const double last = (double)(side - 1);
        const double more[] = {__builtin_nan(""), -__builtin_inf(), __builtin_inf(), last + 0.001,
                               last + 1, 4294967296.0, 18446744073709551616.0};
        owned->positions[axis][below(row->out_shape_zyx[axis])] =
            below(3) ? more[below(7)] : numbers[below(4)];
        break;
    }
    default: {
        const int64_t item = itemsizes[row->out_type];
        if (item == 1) row->source_type = -1;
        else row->out_stride_zyx[axis] += 1 + below(item - 1);
    }
    }
}

/* One value, of which every product and every sum is stored before the next. */
static void expect(const Resampling *row, int64_t z, int64_t y, int64_t x, uint8_t *value) {
    const int64_t at[3] = {z, y, x}, from = row->source_type, to = row->out_type;
    int64_t low[3], high[3];
    double weight[3];
    int is_weighted[3] = {0, 0, 0};
    for (int axis = 0; axis < 3; axis++) {
        const double place = row->position_zyx[axis][at[axis]];
        low[axis] = (int64_t)__builtin_floor(row->is_linear ? place : place + 0.5);
        weight[axis] = row->is_linear ? place - (double)low[axis] : 0;
        high[axis] = low[axis] + (weight[axis] > 0);
        for (int64_t i = 0; row->is_linear && i < row->out_shape_zyx[axis]; i++)
            is_weighted[axis] |=
                row->position_zyx[axis][i] != __builtin_floor(row->position_zyx[axis][i]);
    }
    const int64_t *const strides = row->source_stride_zyx;
    if (from == to && !is_weighted[0] && !is_weighted[1] && !is_weighted[2]) {
        memcpy(value, row->source + place_in(strides, low[0], low[1], low[2]),
               (size_t)itemsizes[from]);
        return;
    }
    const int is_double = from == INT32 || from == UINT32 || from == FLOAT64;
    volatile double wide[8];
    volatile float narrow[8];
    for (int corner = 0; corner < 8; corner++) {
        const uint8_t *const voxel =
            row->source + place_in(strides, corner & 4 ? high[0] : low[0],
                                   corner & 2 ? high[1] : low[1], corner & 1 ? high[2] : low[2]);
        double number;
        float of_float;
        int8_t i8;
        int16_t i16;
        int32_t i32;
        uint16_t u16;
        uint32_t u32;
        switch (from) {
        case INT8: memcpy(&i8, voxel, 1), number = i8; break;
        case UINT8: number = *voxel; break;
        case INT16: memcpy(&i16, voxel, 2), number = i16; break;
        case UINT16: memcpy(&u16, voxel, 2), number = u16; break;
        case INT32: memcpy(&i32, voxel, 4), number = i32; break;
        case UINT32: memcpy(&u32, voxel, 4), number = u32; break;
        case FLOAT32: memcpy(&of_float, voxel, 4), number = of_float; break;
        default: memcpy(&number, voxel, 8);
        }
        wide[corner] = number, narrow[corner] = (float)number;
    }
    for (int axis = 0, half = 4; axis < 3; axis++, half /= 2)
        for (int corner = 0; is_weighted[axis] && corner < half; corner++) {
            const volatile double w = weight[axis], apart = wide[corner + half] - wide[corner];
            const volatile double part = w * apart;
            wide[corner] = wide[corner] + part;
            const volatile float v = (float)weight[axis], by = narrow[corner + half] - narrow[corner];
            const volatile float share = v * by;
            narrow[corner] = narrow[corner] + share;
        }
    const double found = is_double ? wide[0] : narrow[0];
    const float rounded = (float)found;
    if (to == FLOAT64) memcpy(value, &found, sizeof(found));
    else if (to == FLOAT32) memcpy(value, &rounded, sizeof(rounded));
    else {
        const int64_t whole = (int64_t)__builtin_rint(found);
        memcpy(value, &whole, (size_t)itemsizes[to]);
    }
}

static int is_nan(const uint8_t *value, int64_t type) {
    double wide;
    float narrow;
    memcpy(&narrow, value, sizeof(narrow));
    if (type == FLOAT32) return narrow != narrow;
    if (type != FLOAT64) return 0;
    memcpy(&wide, value, sizeof(wide));
    return wide != wide;
}

static void check_values(const Resampling *row, Owned *owned) {
    const int64_t item = itemsizes[row->out_type], *n = row->out_shape_zyx;
    for (int64_t z = 0; z < n[0]; z++)
        for (int64_t y = 0; y < n[1]; y++)
            for (int64_t x = 0; x < n[2]; x++) {
                /* Of a long row, some values. */
                const int64_t at = row->out - owned->out + place_in(row->out_stride_zyx, z, y, x);
                memset(owned->marks + at, 1, (size_t)item);
                if (n[2] > 100 && x > 20 && x < n[2] - 20 && below(50)) continue;
                uint8_t value[8] = {0};
                expect(row, z, y, x, value);
                const uint8_t *const found = owned->out + at;
                require(!memcmp(found, value, (size_t)item) ||
                            (is_nan(value, row->out_type) && is_nan(found, row->out_type)),
                        "a wrong value");
            }
}

static void run(Resampling *rows, Owned *owned, int64_t n_rows, uint8_t pattern, int is_baseline) {
    Resampling *const table = exactly(n_rows * (int64_t)sizeof(Resampling));
    int64_t n_planes = 0;
    for (int64_t i = 0; i < n_rows; i++) {
        memset(owned[i].out, pattern, (size_t)owned[i].out_bytes);
        if (rows[i].out_shape_zyx[0] > 0 && rows[i].out_shape_zyx[0] <= MAX_SIDE)
            n_planes += rows[i].out_shape_zyx[0];
        rows[i].status = -1;
    }
    memcpy(table, rows, (size_t)n_rows * sizeof(Resampling));
    const int64_t n_bytes = spinezarr_resample_scratch_bytes(table, n_rows);
    uint8_t *const scratch = exactly(n_bytes);
    const int64_t border = below(n_planes + 1), far = below(2) ? n_planes : INT64_MAX;
    memset(scratch, pattern, (size_t)n_bytes);
    spinezarr_resample(table, n_rows, border, far, scratch, n_bytes, is_baseline);
    memset(scratch, ~pattern, (size_t)n_bytes);
    spinezarr_resample(table, n_rows, below(2) ? 0 : INT64_MIN, border, scratch, n_bytes,
                       is_baseline);
    /* Too little memory is refused, and not used. */
    Resampling *const last = table + n_rows - 1;
    const int32_t status = last->status;
    if (n_bytes) spinezarr_resample(last, 1, 0, 1, NULL, 0, is_baseline);
    require(last->status == (last->out_shape_zyx[0] < 1 || last->out_shape_zyx[0] > MAX_SIDE
                                 ? -1 : n_bytes ? REFUSED : status), "memory that is not there");
    last->status = status;
    memcpy(rows, table, (size_t)n_rows * sizeof(Resampling));
    free(table), free(scratch);
}

int main(int argc, char **argv) {
    require(argc == 3, "resample_driver FIRST COUNT");
    signal(SIGABRT, aborted);
    const int64_t first = atoll(argv[1]), count = atoll(argv[2]);
    int64_t n_of[2] = {0, 0};
    for (int64_t of_case = first; of_case < first + count; of_case++) {
        start_case(of_case);
        Resampling rows[MOST_ROWS];
        Owned owned[MOST_ROWS];
        uint8_t *before[MOST_ROWS];
        const int64_t n_rows = 1 + below(MOST_ROWS);
        for (int64_t i = 0; i < n_rows; i++) make_row(rows + i, owned + i);
        if (!below(3)) {
            const int64_t i = below(n_rows);
            spoil(rows + i, owned + i);
        }
        run(rows, owned, n_rows, 0xA5, 0);
        for (int64_t i = 0; i < n_rows; i++) {
            Owned *const one = owned + i;
            require((rows[i].status == DONE) == one->is_sound, "a wrong status");
            n_of[one->is_sound]++;
            if (one->is_sound) check_values(rows + i, one);
            for (int64_t at = 0; at < one->out_bytes; at++)
                require(one->marks[at] || one->out[at] == 0xA5, "written beside the values");
            before[i] = exactly(one->out_bytes);
            memcpy(before[i], one->out, (size_t)one->out_bytes);
        }
        run(rows, owned, n_rows, 0x5A, 1);
        for (int64_t i = 0; i < n_rows; i++) {
            Owned *const one = owned + i;
            require((rows[i].status == DONE) == one->is_sound, "another status");
            const int64_t item = one->is_sound ? itemsizes[rows[i].out_type] : 1;
            for (int64_t at = 0; at + item <= one->out_bytes; at += item)
                require(!one->marks[at] || !memcmp(one->out + at, before[i] + at, (size_t)item) ||
                            (is_nan(one->out + at, rows[i].out_type) &&
                             is_nan(before[i] + at, rows[i].out_type)),
                        "another value with other memory or instructions");
            free(before[i]), free(one->source), free(one->out), free(one->marks);
            for (int axis = 0; axis < 3; axis++) free(one->positions[axis]);
        }
    }
    printf("%lld cases of resampling: %lld done, %lld refused\n", (long long)count,
           (long long)n_of[1], (long long)n_of[0]);
    return 0;
}
