/* Computes boxes of values at a grid of positions between voxels, without Python.
 *
 * Values are those of ``resample`` in resample.py, bit for bit: linear along z, then y, then x, in
 * float32 if that holds all voxels and else in float64, and rounded half to even; or those of the
 * nearest voxels. So this file must be compiled with -ffp-contract=off.
 *
 * A value needs eight voxels. The two columns around each position along x are put side by side
 * first, once for each row of the source: all arithmetic is then between rows that lie one after the
 * other. Two planes of such rows are kept, and two rows between them; so a box is computed in parts of
 * a few rows, all planes of each part one after the other, and what is kept stays in the cache.
 *
 * The table is not trusted: a row of it whose numbers do not fit together is REFUSED. Only addresses
 * are trusted: ``source`` and ``out``, with their strides, have their shapes, and each array of
 * positions is as long as its axis of ``out``.
 */
#include "processor.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#define X86 1
#include <immintrin.h>
#define WITH_AVX2 __attribute__((target("avx2")))
#endif

#define EXPORT __attribute__((visibility("default")))

/* Status of a row of the table. The caller computes those that are not DONE by other means. */
enum { DONE = 0, REFUSED = 1 };

/* Types of voxels, as in native.py. Integers come first. */
enum { INT8, UINT8, INT16, UINT16, INT32, UINT32, FLOAT32, FLOAT64, N_TYPES };
static const int64_t itemsizes[N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 8};

/* Fewer columns than this make rows along x too short, if those along y can be taken instead. */
enum { FEW_COLUMNS = 16 };
/* Columns are counted in 32 bits. The sum of a few products of two sides fits into 64 bits easily. */
static const int64_t MAX_SIDE = (int64_t)1 << 24;
/* Bytes of the two planes that are kept: they fit into the second cache of most processors. */
static const int64_t KEPT_BYTES = 1 << 18;
enum { LINE = 64 }; /* bytes of a cache line */
/* Rows are too short for the processor to fetch the next ones itself. */
enum { ROWS_AHEAD = 4 };

typedef struct {
    const uint8_t *source;         /* first voxel */
    uint8_t *out;                  /* first value */
    const double *position_zyx[3]; /* of the values along each axis, in voxels of the source */
    int64_t source_stride_zyx[3];
    int64_t source_shape_zyx[3];
    int64_t out_stride_zyx[3];
    int64_t out_shape_zyx[3];
    int64_t source_type;
    int64_t out_type;
    int32_t is_linear; /* else the nearest voxels are taken */
    int32_t status;
} Resampling;

/* Loops over one row; see resample_rows.h. */
typedef struct {
    int64_t itemsize;
    void (*load[N_TYPES])(const void *voxels, void *values, int64_t n);
    void (*store[N_TYPES])(const void *values, void *out, int64_t n);
    void (*select)(const void *values, const int32_t *columns, void *out, int64_t n);
    void (*between_rows)(const void *low_row, const void *high_row, double weight, void *out,
                         int64_t n);
    void (*within_row)(const void *row, const void *weights, void *out, int64_t n);
    void (*between_rows_and_within)(const void *low_row, const void *high_row, double weight,
                                    const void *weights, void *out, int64_t n);
} Loops;

#define REAL float
#define BITS uint32_t
#define ROUND 0x1.8p23f
#define ROUND_BITS 0x4B400000u
#define NAME(name) name##_float
#define TARGET
#include "resample_rows.h"
#undef NAME
#undef TARGET
#if X86
#define NAME(name) name##_float_avx2
#define TARGET WITH_AVX2
#include "resample_rows.h"
#undef NAME
#undef TARGET
#endif
#undef REAL
#undef BITS
#undef ROUND
#undef ROUND_BITS

#define REAL double
#define BITS uint64_t
#define ROUND 0x1.8p52
#define ROUND_BITS 0x4338000000000000u
#define NAME(name) name##_double
#define TARGET
#include "resample_rows.h"
#undef NAME
#undef TARGET
#if X86
#define NAME(name) name##_double_avx2
#define TARGET WITH_AVX2
#include "resample_rows.h"
#undef NAME
#undef TARGET
#endif

static int cpu_has_avx2(void) {
#if defined(__AVX2__)
    return 1; /* the compiler was told so */
#elif X86
    return processor_has_avx2();
#else
    return 0;
#endif
}

static int is_double(int64_t source_type) {
    return source_type == INT32 || source_type == UINT32 || source_type == FLOAT64;
}

static const Loops *loops_for(int64_t source_type, int has_avx2) {
#if X86
    if (has_avx2) return is_double(source_type) ? &loops_double_avx2 : &loops_float_avx2;
#else
    (void)has_avx2;
#endif
    return is_double(source_type) ? &loops_double : &loops_float;
}

/* Positions ---------------------------------------------------------------------------------- */

/* The voxels around each position along an axis. */
typedef struct {
    int32_t *lower, *upper; /* the same, if the position is a voxel */
    double *weight;         /* of the upper voxel */
    int is_weighted;        /* whether any weight is above 0 */
    int is_run;             /* whether the lower voxels follow each other */
} Taps;

/* Returns whether all positions lie between the first and the last voxel of a side. */
static int find_taps(Taps *taps, const double *positions, int64_t n, int64_t side, int is_linear) {
    taps->is_weighted = 0, taps->is_run = 1;
    for (int64_t i = 0; i < n; i++) {
        const double at = positions[i];
        if (!(at >= 0 && at <= (double)(side - 1))) return 0; /* NaN is not */
        const int32_t lower = (int32_t)(is_linear ? at : at + 0.5);
        const double weight = is_linear ? at - lower : 0;
        taps->lower[i] = lower, taps->upper[i] = lower + (weight > 0), taps->weight[i] = weight;
        if (weight > 0) taps->is_weighted = 1;
        if (lower != taps->lower[0] + i) taps->is_run = 0;
    }
    return 1;
}

/* Columns ------------------------------------------------------------------------------------ */

/* Most positions are close together, so several columns lie in one vector of the source, and one
 * instruction takes them from there. A group of columns needs two such vectors. */
enum { WINDOW = 8, GROUP = 4 };
enum { BYTE_WINDOW = 16, BYTE_GROUP = 8 };
enum { NO_LANE = 0x80 }; /* of bytes; it gives 0 */

typedef struct {
    int32_t start[2];        /* of the vectors: one for each half of the group */
    int32_t lane[2 * GROUP]; /* in its vector, of the lower columns, then of the upper ones */
} Group;

typedef struct {
    int32_t start[2];
    uint8_t lane[2][BYTE_WINDOW];
} ByteGroup;

/* Returns the number of the first column of a group; the last group ends with the last column. */
static int64_t first_of(int64_t group, int64_t size, int64_t n) {
    const int64_t first = group * size;
    return first + size > n ? n - size : first;
}

/* Divides columns into groups; returns whether each half of a group fits into a vector. */
static int find_groups(Group *groups, const Taps *x, int64_t n, int64_t side) {
    if (n < GROUP || side < WINDOW) return 0;
    for (int64_t i = 0; i * GROUP < n; i++) {
        const int64_t first = first_of(i, GROUP, n);
        for (int half = 0; half < 2; half++) {
            const int64_t start = x->lower[first + half * GROUP / 2];
            groups[i].start[half] = (int32_t)(start > side - WINDOW ? side - WINDOW : start);
        }
        for (int k = 0; k < GROUP; k++) {
            const int32_t start = groups[i].start[k / (GROUP / 2)];
            const int32_t low = x->lower[first + k] - start, high = x->upper[first + k] - start;
            if (low < 0 || high >= WINDOW) return 0;
            groups[i].lane[k] = low, groups[i].lane[GROUP + k] = high;
        }
    }
    return 1;
}

/* The same for the lower columns of bytes. */
static int find_byte_groups(ByteGroup *groups, const Taps *x, int64_t n, int64_t side) {
    if (n < BYTE_GROUP || side < BYTE_WINDOW) return 0;
    for (int64_t i = 0; i * BYTE_GROUP < n; i++) {
        const int64_t first = first_of(i, BYTE_GROUP, n);
        memset(groups[i].lane, NO_LANE, sizeof(groups[i].lane));
        for (int k = 0; k < BYTE_GROUP; k++) {
            const int half = k / (BYTE_GROUP / 2);
            const int64_t start = x->lower[first + half * BYTE_GROUP / 2];
            groups[i].start[half] =
                (int32_t)(start > side - BYTE_WINDOW ? side - BYTE_WINDOW : start);
            const int32_t lane = x->lower[first + k] - groups[i].start[half];
            if (lane < 0 || lane >= BYTE_WINDOW) return 0;
            groups[i].lane[half][k] = (uint8_t)lane;
        }
    }
    return 1;
}

#if X86
WITH_AVX2 static void select_groups(const float *values, const Group *groups, float *low,
                                    float *high, int64_t n) {
    for (int64_t i = 0; i * GROUP < n; i++) {
        const Group *const group = groups + i;
        const int64_t first = first_of(i, GROUP, n);
        const __m256i lanes = _mm256_loadu_si256((const __m256i *)(const void *)group->lane);
        const __m256 a = _mm256_loadu_ps(values + group->start[0]);
        const __m256 b = _mm256_loadu_ps(values + group->start[1]);
        enum { SECOND_HALVES = 0xCC }; /* of the lower and of the upper columns */
        const __m256 both =
            _mm256_blend_ps(_mm256_permutevar8x32_ps(a, lanes),
                            _mm256_permutevar8x32_ps(b, lanes), SECOND_HALVES);
        _mm_storeu_ps(low + first, _mm256_castps256_ps128(both));
        _mm_storeu_ps(high + first, _mm256_extractf128_ps(both, 1));
    }
}

WITH_AVX2 static void copy_byte_groups(const uint8_t *voxels, const ByteGroup *groups, uint8_t *out,
                                       int64_t n) {
    for (int64_t i = 0; i * BYTE_GROUP < n; i++) {
        const ByteGroup *const group = groups + i;
        __m128i taken[2];
        for (int half = 0; half < 2; half++) {
            const void *const from = voxels + group->start[half], *const lanes = group->lane[half];
            taken[half] = _mm_shuffle_epi8(_mm_loadu_si128(from), _mm_loadu_si128(lanes));
        }
        void *const to = out + first_of(i, BYTE_GROUP, n);
        _mm_storel_epi64(to, _mm_or_si128(taken[0], taken[1]));
    }
}
#endif

/* The table ---------------------------------------------------------------------------------- */

static int is_multiple(int64_t number, int64_t of) { return number % of == 0; }

/* Returns whether a row of the table fits together, apart from its positions. */
static int is_sound(const Resampling *row) {
    const int64_t from = row->source_type, to = row->out_type;
    if (from < 0 || from >= N_TYPES || to < 0 || to >= N_TYPES) return 0;
    if (row->is_linear ? from >= FLOAT32 && to < FLOAT32 : from != to) return 0;
    const int64_t voxel = itemsizes[from], value = itemsizes[to];
    if ((uintptr_t)row->source % (uintptr_t)voxel || (uintptr_t)row->out % (uintptr_t)value) return 0;
    for (int axis = 0; axis < 3; axis++) {
        const int64_t side = row->source_shape_zyx[axis], n = row->out_shape_zyx[axis];
        if (side < 1 || side > MAX_SIDE || n < 1 || n > MAX_SIDE) return 0;
        if (!is_multiple(row->source_stride_zyx[axis], voxel)) return 0;
        if (!is_multiple(row->out_stride_zyx[axis], value)) return 0;
    }
    return 1;
}

/* Returns whether all positions along x are voxels. */
static int is_whole(const Resampling *row) {
    for (int64_t i = 0; i < row->out_shape_zyx[2]; i++) {
        const double at = row->position_zyx[2][i];
        if (!(at >= 0 && at < (double)MAX_SIDE) || at != (double)(int64_t)at) return 0;
    }
    return 1;
}

/* Returns whether a row of the table has few columns, and nothing is interpolated along x. Then its
 * axes may be taken in the order x, z, y: z is still interpolated before y. */
static int is_thin(const Resampling *row) {
    const int64_t nx = row->out_shape_zyx[2];
    if (nx >= FEW_COLUMNS || nx >= row->out_shape_zyx[1]) return 0;
    return !row->is_linear || is_whole(row);
}

static void turn(int64_t *zyx) {
    const int64_t x = zyx[2];
    zyx[2] = zyx[1], zyx[1] = zyx[0], zyx[0] = x;
}

/* Returns a row of the table with its axes in the order x, z, y. */
static Resampling turned(Resampling row) {
    const double *const x = row.position_zyx[2];
    row.position_zyx[2] = row.position_zyx[1], row.position_zyx[1] = row.position_zyx[0];
    row.position_zyx[0] = x;
    turn(row.source_stride_zyx), turn(row.source_shape_zyx);
    turn(row.out_stride_zyx), turn(row.out_shape_zyx);
    return row;
}

/* Number of planes of a row: planes are counted through the whole table. */
static int64_t n_planes(const Resampling *row) {
    const int64_t n = row->out_shape_zyx[0];
    return n < 1 || n > MAX_SIDE ? 0 : n;
}

/* Memory ------------------------------------------------------------------------------------- */

/* Memory of a thread, of which parts are given away one after the other. */
typedef struct {
    uint8_t *start; /* NULL only counts */
    int64_t used;
} Memory;

static int64_t whole_lines(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

static void *take(Memory *memory, int64_t bytes) {
    void *const taken = memory->start ? memory->start + memory->used : NULL;
    memory->used += whole_lines(bytes);
    return taken;
}

/* What the computation of a row of the table has in memory. */
typedef struct {
    Taps zyx[3];
    int32_t *columns;    /* the lower voxels along x, then the upper ones if they are needed */
    int64_t n_columns;
    Group *groups; /* of these columns */
    ByteGroup *byte_groups;
    int has_groups, has_byte_groups;
    void *weights;       /* along x, of the type of the values */
    void *dense;         /* a row of the source, one voxel after the other */
    void *voxels;        /* the same, of the type of the values */
    uint8_t *plane[2];   /* rows of two planes of the source, at these columns */
    uint8_t *between[2]; /* two rows between these planes */
    void *values;        /* a row of the output, of the type of the values */
    void *stored;        /* the same, of the type of the output */
    int32_t *rows;       /* numbers of the rows of the source that are in ``plane`` */
    int64_t most_rows;   /* that there is room for */
    int64_t row_bytes;   /* of a row of ``plane`` and ``between`` */
} Work;

/* Divides memory among the parts of ``work``; returns how many bytes of it there must be. */
static int64_t divide(const Resampling *row, const Loops *loops, uint8_t *scratch, Work *work) {
    const int64_t *const n = row->out_shape_zyx;
    const int64_t nx = n[2], item = loops->itemsize, i32 = sizeof(int32_t);
    const int64_t before = scratch ? (int64_t)(-(uintptr_t)scratch % LINE) : LINE - 1;
    Memory memory = {scratch, before};
    for (int axis = 0; axis < 3; axis++) {
        work->zyx[axis].lower = take(&memory, n[axis] * i32);
        work->zyx[axis].upper = take(&memory, n[axis] * i32);
        work->zyx[axis].weight = take(&memory, n[axis] * (int64_t)sizeof(double));
    }
    work->columns = take(&memory, 2 * nx * i32);
    work->groups = take(&memory, (nx / GROUP + 1) * (int64_t)sizeof(Group));
    work->byte_groups = take(&memory, (nx / BYTE_GROUP + 1) * (int64_t)sizeof(ByteGroup));
    work->weights = take(&memory, nx * item);
    work->dense = take(&memory, row->source_shape_zyx[2] * itemsizes[row->source_type]);
    work->voxels = take(&memory, row->source_shape_zyx[2] * item);
    work->row_bytes = whole_lines(2 * nx * item);
    int64_t most_rows = KEPT_BYTES / (2 * work->row_bytes);
    if (most_rows > 2 * n[1]) most_rows = 2 * n[1];
    if (most_rows < 2) most_rows = 2;
    work->most_rows = most_rows;
    for (int i = 0; i < 2; i++) work->plane[i] = take(&memory, most_rows * work->row_bytes);
    for (int i = 0; i < 2; i++) work->between[i] = take(&memory, work->row_bytes);
    work->values = take(&memory, nx * item);
    work->stored = take(&memory, nx * itemsizes[row->out_type]);
    work->rows = take(&memory, most_rows * i32);
    return memory.used;
}

/* Tells the processor that a row will be read; its address may be that of nothing. */
static void fetch_row(uintptr_t row, int64_t n_bytes) {
    for (int64_t at = 0; at < n_bytes; at += LINE)
        __builtin_prefetch((const void *)(row + (uintptr_t)at), 0);
}

/* The same for a row that will be written. */
static void fetch_row_to_write(uintptr_t row, int64_t n_bytes) {
    for (int64_t at = 0; at < n_bytes; at += LINE)
        __builtin_prefetch((const void *)(row + (uintptr_t)at), 1);
}

/* Nearest voxels ----------------------------------------------------------------------------- */

#define COPY(bits)                                                                                 \
    static void copy##bits(const void *voxels, int64_t stride, const int32_t *columns, void *out,  \
                           int64_t out_stride, int64_t n) {                                        \
        const uint##bits##_t *const from = voxels;                                                 \
        uint##bits##_t *const to = out;                                                            \
        const int64_t step = stride / (bits / 8), out_step = out_stride / (bits / 8);              \
        if (step == 1 && out_step == 1)                                                            \
            for (int64_t i = 0; i < n; i++) to[i] = from[columns[i]];                              \
        else                                                                                       \
            for (int64_t i = 0; i < n; i++) to[i * out_step] = from[columns[i] * step];            \
    }
COPY(8)
COPY(16)
COPY(32)
COPY(64)

static void copy_row(const Resampling *row, const Work *work, const uint8_t *voxels, uint8_t *out) {
    const int64_t n = row->out_shape_zyx[2], item = itemsizes[row->out_type];
    const int64_t stride = row->source_stride_zyx[2], out_stride = row->out_stride_zyx[2];
    const int is_dense = stride == item && out_stride == item;
    const int32_t *const columns = work->zyx[2].lower;
    if (work->zyx[2].is_run && is_dense)
        memcpy(out, voxels + columns[0] * item, (size_t)(n * item));
#if X86
    else if (work->has_byte_groups && is_dense)
        copy_byte_groups(voxels, work->byte_groups, out, n);
#endif
    else if (item == 1)
        copy8(voxels, stride, columns, out, out_stride, n);
    else if (item == 2)
        copy16(voxels, stride, columns, out, out_stride, n);
    else if (item == 4)
        copy32(voxels, stride, columns, out, out_stride, n);
    else
        copy64(voxels, stride, columns, out, out_stride, n);
}

/* Fills the output with voxels. A row that is the same as one before is copied from there. */
static void take_voxels(const Resampling *row, const Work *work) {
    const int64_t *const in = row->source_stride_zyx, *const to = row->out_stride_zyx;
    const int64_t *const n = row->out_shape_zyx;
    const int64_t item = itemsizes[row->out_type], n_bytes = n[2] * item;
    const int32_t *const planes = work->zyx[0].lower, *const rows = work->zyx[1].lower;
    const int is_dense = to[2] == item;
    for (int64_t z = 0; z < n[0]; z++) {
        const int same_plane = is_dense && z > 0 && planes[z] == planes[z - 1];
        for (int64_t y = 0; y < n[1]; y++) {
            uint8_t *const out = row->out + z * to[0] + y * to[1];
            if (same_plane)
                memcpy(out, out - to[0], (size_t)n_bytes);
            else if (is_dense && y > 0 && rows[y] == rows[y - 1])
                memcpy(out, out - to[1], (size_t)n_bytes);
            else
                copy_row(row, work, row->source + planes[z] * in[0] + rows[y] * in[1], out);
        }
    }
}

/* Values between voxels ---------------------------------------------------------------------- */

/* Returns in which of two places a number is. If it is in none, returns where to put it so that the
 * other one stays. */
static int place_of(const int64_t held[2], int64_t number, int64_t other) {
    if (held[0] == number) return 0;
    if (held[1] == number) return 1;
    return held[0] == other;
}

/* Returns the place of a row among those that are kept; adds it unless it was added just before. */
static int32_t kept_place(int32_t *rows, int64_t *n, int32_t row) {
    for (int64_t place = *n - 1; place >= 0 && place >= *n - 2; place--)
        if (rows[place] == row) return (int32_t)place;
    rows[*n] = row;
    return (int32_t)(*n)++;
}

/* Returns a row of the source whose voxels lie one after the other. */
static const uint8_t *dense_row(const Resampling *row, const Work *work, const uint8_t *voxels) {
    const int64_t stride = row->source_stride_zyx[2], item = itemsizes[row->source_type];
    const int64_t n = row->source_shape_zyx[2];
    if (stride == item) {
        const int64_t ahead = ROWS_AHEAD * row->source_stride_zyx[1];
        fetch_row((uintptr_t)voxels + (uintptr_t)ahead, n * item);
        return voxels;
    }
    uint8_t *to = work->dense;
    for (int64_t i = 0; i < n; i++, to += item, voxels += stride) memcpy(to, voxels, (size_t)item);
    return work->dense;
}

/* Puts the kept rows of a plane of the source into memory, at their columns. */
static void keep_plane(const Resampling *row, const Loops *loops, const Work *work, int64_t plane,
                       int64_t n_rows, uint8_t *to) {
    const int64_t *const stride = row->source_stride_zyx;
    const int64_t nx = row->out_shape_zyx[2], type = row->source_type;
    const Taps *const x = work->zyx + 2;
    for (int64_t i = 0; i < n_rows; i++, to += work->row_bytes) {
        const uint8_t *const voxels = dense_row(
            row, work, row->source + plane * stride[0] + work->rows[i] * stride[1]);
        if (!x->is_weighted && x->is_run) {
            loops->load[type](voxels + x->lower[0] * itemsizes[type], to, nx);
            continue;
        }
        const void *values = voxels;
        if (type < FLOAT32) {
            loops->load[type](voxels, work->voxels, row->source_shape_zyx[2]);
            values = work->voxels;
        }
#if X86
        if (work->has_groups) {
            float *const low = (void *)to;
            select_groups(values, work->groups, low, low + nx, nx);
            continue;
        }
#endif
        loops->select(values, work->columns, to, work->n_columns);
    }
}

/* Stores a row of values. */
static void store_row(const Resampling *row, const Loops *loops, const Work *work,
                      const void *values, uint8_t *out) {
    const int64_t n = row->out_shape_zyx[2], stride = row->out_stride_zyx[2];
    const int64_t item = itemsizes[row->out_type];
    if (stride == item) {
        fetch_row_to_write((uintptr_t)out + (uintptr_t)(ROWS_AHEAD * row->out_stride_zyx[1]),
                           n * item);
        loops->store[row->out_type](values, out, n);
        return;
    }
    loops->store[row->out_type](values, work->stored, n);
    const uint8_t *stored = work->stored;
    for (int64_t i = 0; i < n; i++, stored += item, out += stride)
        memcpy(out, stored, (size_t)item);
}

/* Fills rows ``begin`` to ``end - 1`` of plane ``z`` of the output from two planes of the source. */
static void fill_rows(const Resampling *row, const Loops *loops, const Work *work,
                      const uint8_t *const plane[2], int64_t z, int64_t begin, int64_t end) {
    const Taps *const of_z = work->zyx, *const of_y = of_z + 1, *const of_x = of_z + 2;
    const int64_t *const stride = row->out_stride_zyx, nx = row->out_shape_zyx[2];
    int64_t held[2] = {-1, -1}; /* rows that are in ``between`` */
    for (int64_t y = begin; y < end; y++) {
        const int64_t wanted[2] = {of_y->lower[y], of_y->upper[y]};
        const void *rows[2];
        for (int i = 0; i < 2; i++) {
            const int64_t offset = wanted[i] * work->row_bytes;
            rows[i] = plane[0] + offset;
            if (!of_z->is_weighted) continue;
            const int place = place_of(held, wanted[i], wanted[!i]);
            if (held[place] != wanted[i])
                loops->between_rows(plane[0] + offset, plane[1] + offset, of_z->weight[z],
                                    work->between[place], work->n_columns);
            held[place] = wanted[i];
            rows[i] = work->between[place];
        }
        const double weight = of_y->weight[y];
        const void *values = work->values;
        if (of_y->is_weighted && of_x->is_weighted)
            loops->between_rows_and_within(rows[0], rows[1], weight, work->weights, work->values, nx);
        else if (of_y->is_weighted)
            loops->between_rows(rows[0], rows[1], weight, work->values, nx);
        else if (of_x->is_weighted)
            loops->within_row(rows[0], work->weights, work->values, nx);
        else
            values = rows[0];
        store_row(row, loops, work, values, row->out + z * stride[0] + y * stride[1]);
    }
}

/* Fills the output with interpolated values. */
static void interpolate(const Resampling *row, const Loops *loops, const Work *work) {
    const Taps *const of_z = work->zyx, *const of_y = of_z + 1;
    const int64_t nz = row->out_shape_zyx[0], ny = row->out_shape_zyx[1];
    for (int64_t begin = 0, end = 0; begin < ny; begin = end) {
        int64_t n_rows = 0;
        for (; end < ny && n_rows <= work->most_rows - 2; end++) {
            of_y->lower[end] = kept_place(work->rows, &n_rows, of_y->lower[end]);
            of_y->upper[end] = kept_place(work->rows, &n_rows, of_y->upper[end]);
        }
        int64_t held[2] = {-1, -1}; /* planes of the source that are in ``plane`` */
        for (int64_t z = 0; z < nz; z++) {
            const int64_t wanted[2] = {of_z->lower[z], of_z->upper[z]};
            const uint8_t *planes[2];
            for (int i = 0; i < 2; i++) {
                const int place = place_of(held, wanted[i], wanted[!i]);
                if (held[place] != wanted[i])
                    keep_plane(row, loops, work, wanted[i], n_rows, work->plane[place]);
                held[place] = wanted[i];
                planes[i] = work->plane[place];
            }
            fill_rows(row, loops, work, planes, z, begin, end);
        }
    }
}

/* Interface ---------------------------------------------------------------------------------- */

/* Leaves only values ``first`` to ``last - 1`` along an axis. */
static void cut(Resampling *row, Taps *taps, int axis, int64_t first, int64_t last) {
    row->out += first * row->out_stride_zyx[axis];
    row->out_shape_zyx[axis] = last - first;
    taps->lower += first, taps->upper += first, taps->weight += first;
}

/* Computes some planes of a row of the table, and returns its status. */
static int resample(const Resampling *of_table, int64_t first, int64_t last, uint8_t *scratch,
                    int64_t scratch_bytes, int is_baseline) {
    if (!is_sound(of_table)) return REFUSED;
    const int has_avx2 = !is_baseline && cpu_has_avx2(), is_turned = is_thin(of_table);
    Resampling row = is_turned ? turned(*of_table) : *of_table;
    const Loops *const loops = loops_for(row.source_type, has_avx2);
    Work work;
    if (divide(&row, loops, NULL, &work) > scratch_bytes) return REFUSED;
    divide(&row, loops, scratch, &work);
    int is_weighted = 0;
    for (int axis = 0; axis < 3; axis++) {
        Taps *const taps = work.zyx + axis;
        if (!find_taps(taps, row.position_zyx[axis], row.out_shape_zyx[axis],
                       row.source_shape_zyx[axis], row.is_linear))
            return REFUSED;
        is_weighted |= taps->is_weighted;
    }
    /* Not before: one weight is enough for all values along an axis to be interpolated. */
    cut(&row, work.zyx + is_turned, is_turned, first, last);
    const Taps *const x = work.zyx + 2;
    const int64_t nx = row.out_shape_zyx[2], side = row.source_shape_zyx[2];
    if (!is_weighted && row.source_type == row.out_type) {
        work.has_byte_groups = has_avx2 && itemsizes[row.source_type] == 1 &&
                               find_byte_groups(work.byte_groups, x, nx, side);
        take_voxels(&row, &work);
        return DONE;
    }
    work.has_groups = has_avx2 && x->is_weighted && !is_double(row.source_type) &&
                      find_groups(work.groups, x, nx, side);
    work.n_columns = x->is_weighted ? 2 * nx : nx;
    memcpy(work.columns, x->lower, (size_t)nx * sizeof(int32_t));
    memcpy(work.columns + nx, x->upper, (size_t)nx * sizeof(int32_t));
    loops->load[FLOAT64](x->weight, work.weights, nx);
    interpolate(&row, loops, &work);
    return DONE;
}

/* Bytes of a row of the table, so that the caller can check that its structure is the same. */
EXPORT int64_t spinezarr_resampling_bytes(void) { return (int64_t)sizeof(Resampling); }

/* Bytes of ``scratch`` that spinezarr_resample needs for a table. */
EXPORT int64_t spinezarr_resample_scratch_bytes(const Resampling *rows, int64_t n_rows) {
    int64_t most = 0;
    for (int64_t i = 0; i < n_rows; i++) {
        if (!is_sound(rows + i)) continue;
        const Resampling row = is_thin(rows + i) ? turned(rows[i]) : rows[i];
        Work work;
        const int64_t n = divide(&row, loops_for(row.source_type, 0), NULL, &work);
        if (n > most) most = n;
    }
    return most;
}

/* Computes planes ``first`` to ``last - 1`` of the outputs of a table, counted through all of them,
 * and sets the status of each row whose first plane is among them. Where one is REFUSED, all calls
 * refuse it. With ``is_baseline``, only instructions are used that every processor has. */
EXPORT void spinezarr_resample(Resampling *rows, int64_t n_rows, int64_t first, int64_t last,
                               uint8_t *scratch, int64_t scratch_bytes, int32_t is_baseline) {
    if (first < 0) first = 0;
    for (int64_t i = 0; i < n_rows && last > 0; i++) {
        Resampling *const row = rows + i;
        const int64_t n = n_planes(row), end = last < n ? last : n;
        if (n > 0 && first < end) {
            const int status = resample(row, first < 0 ? 0 : first, end, scratch, scratch_bytes,
                                        is_baseline);
            if (first <= 0) row->status = status;
        }
        first -= n, last -= n;
    }
}
