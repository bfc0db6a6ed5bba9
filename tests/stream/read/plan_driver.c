/* Runs the planning of the kernel on made-up tables: plan_driver FIRST COUNT.
 *
 * It is compiled together with plan.c, under sanitizers. Each buffer is an allocation of just its
 * size. The pieces of a plan of sound tables must fill each box once.
 */
#include "plan.c"

#include "driver.h"

enum { MOST_ARRAYS = 3, MOST_BOXES = 4, MOST_PIECES = 5000, MOST_VOXELS = 1 << 20 };

static int is_forged; /* whether numbers of this case may be wrong */

static int64_t perhaps(int64_t right) { return is_forged && !below(25) ? made_up(right) : right; }

static void make_array(Array *array) {
    for (int axis = 0; axis < 3; axis++) {
        array->shape_zyx[axis] = perhaps(1 + below(20));
        array->chunk_shape_zyx[axis] = perhaps(1 + below(6));
        array->per_shard_zyx[axis] = perhaps(1 + below(3));
    }
    array->itemsize = perhaps(1 + below(2));
    array->block_bytes = perhaps(1 + below(20));
    array->encoding = below(3);
}

static void make_box(Wanted *box, const Array *arrays, int64_t n_arrays) {
    const int64_t number = below(n_arrays);
    box->array = perhaps(number);
    for (int axis = 0; axis < 3; axis++) {
        const int64_t side = arrays[number].shape_zyx[axis];
        const int64_t start = side > 0 && side < 1000 ? below(side) : below(20);
        box->start_zyx[axis] = perhaps(start);
        box->stop_zyx[axis] = perhaps(start + 1 + (side > start ? below(side - start) : 0));
    }
}

/* Checks that the pieces of each box are disjoint and cover it, and that chunks are in order. */
static void check(const Array *arrays, const Wanted *boxes, int64_t n_boxes, const Piece *pieces,
                  int64_t n_pieces, const Place *places, int64_t n_places) {
    int64_t listed = 0;
    for (int64_t i = 0; i < n_places; i++) {
        const Place *const place = places + i;
        require(place->first_piece == listed && place->n_pieces > 0, "pieces of no chunk");
        listed += place->n_pieces;
        require(place->first_block >= 0 && place->stop_block > place->first_block, "no block");
        if (i == 0) continue;
        int order = (place->array > place[-1].array) - (place->array < place[-1].array);
        for (int axis = 0; axis < 3 && !order; axis++)
            order = (place->shard_zyx[axis] > place[-1].shard_zyx[axis]) -
                    (place->shard_zyx[axis] < place[-1].shard_zyx[axis]);
        require(place->opens_shard == (order != 0), "a run of a shard");
        if (!order) order = place->position > place[-1].position;
        require(order > 0, "chunks out of order");
    }
    require(listed == n_pieces, "pieces of no chunk");
    for (int64_t b = 0; b < n_boxes; b++) {
        int64_t shape[3], n = 1;
        for (int axis = 0; axis < 3; axis++) {
            shape[axis] = boxes[b].stop_zyx[axis] - boxes[b].start_zyx[axis];
            if (__builtin_mul_overflow(n, shape[axis], &n)) n = MOST_VOXELS + 1;
        }
        if (n > MOST_VOXELS) continue;
        uint8_t *const filled = exactly(n);
        memset(filled, 0, (size_t)n);
        for (int64_t p = 0, c = 0; p < n_pieces; p++) {
            while (p >= places[c].first_piece + places[c].n_pieces) c++;
            if (pieces[p].output != b) continue;
            const int64_t *const at = pieces[p].within_output_zyx, *const m = pieces[p].shape_zyx;
            for (int axis = 0; axis < 3; axis++) {
                const int64_t side = arrays[boxes[b].array].chunk_shape_zyx[axis];
                const int64_t voxel = boxes[b].start_zyx[axis] + at[axis];
                require(voxel == places[c].chunk_zyx[axis] * side + pieces[p].within_chunk_zyx[axis],
                        "a piece of another chunk");
                require(pieces[p].within_chunk_zyx[axis] + m[axis] <= side, "beyond the chunk");
            }
            for (int64_t z = at[0]; z < at[0] + m[0]; z++)
                for (int64_t y = at[1]; y < at[1] + m[1]; y++)
                    for (int64_t x = at[2]; x < at[2] + m[2]; x++)
                        filled[(z * shape[1] + y) * shape[2] + x]++;
        }
        for (int64_t i = 0; i < n; i++) require(filled[i] == 1, "a voxel that is not filled once");
        free(filled);
    }
}

/* Locates places in tables of shards whose numbers may be wrong. */
static void locate(const Array *arrays, int64_t n_arrays, const Place *places, int64_t n_places) {
    Place *const forged = exactly(n_places * (int64_t)sizeof(Place));
    memcpy(forged, places, (size_t)n_places * sizeof(Place));
    for (int64_t i = 0; i < n_places; i++) {
        int64_t *const numbers = (int64_t *)(forged + i);
        if (is_forged && !below(20)) {
            const int64_t which = below((int64_t)(sizeof(Place) / sizeof(int64_t)));
            numbers[which] = made_up(numbers[which]);
        }
    }
    const int64_t n_tables = 1 + below(3), n_columns = 1 + below(8), most = 1 + below(n_columns);
    ShardTable *const tables = exactly(n_tables * (int64_t)sizeof(ShardTable));
    void *owned[3][3] = {{0}};
    for (int64_t t = 0; t < n_tables; t++) {
        const int64_t n_positions = below(30), n_rows = below(10);
        int32_t *const rows = exactly(n_positions * 4);
        int64_t *const starts = exactly(n_rows * most * 8);
        uint32_t *const checksums = exactly(n_rows * 4);
        for (int64_t i = 0; i < n_positions; i++) rows[i] = (int32_t)perhaps(below(n_rows + 1) - 1);
        for (int64_t i = 0; i < n_rows * most; i++) starts[i] = below(1000);
        for (int64_t i = 0; i < n_rows; i++) checksums[i] = (uint32_t)draw();
        const int64_t stop = t == n_tables - 1 ? n_places : below(n_places + 1);
        const ShardTable table = {perhaps(stop), t, below(4) ? rows : NULL, n_positions,
                                  starts,        checksums, n_rows,         most};
        tables[t] = table;
        owned[t][0] = rows, owned[t][1] = starts, owned[t][2] = checksums;
    }
    Chunk *const chunks = exactly(n_places * (int64_t)sizeof(Chunk));
    int64_t *const starts = exactly(n_places * n_columns * 8), *const shards = exactly(n_places * 8);
    if (spinezarr_locate(arrays, n_arrays, forged, n_places, tables, n_tables, chunks, starts,
                         n_columns, shards))
        for (int64_t i = 0; i < n_places; i++) {
            require((chunks[i].encoding == BACKGROUND) == (chunks[i].size == 0) ||
                        chunks[i].encoding != BACKGROUND, "background with bytes");
            if (chunks[i].encoding == BACKGROUND) continue;
            require(chunks[i].first_start >= i * n_columns &&
                        chunks[i].first_start + chunks[i].n_blocks < (i + 1) * n_columns,
                    "starts of another chunk");
        }
    for (int64_t t = 0; t < n_tables; t++)
        for (int i = 0; i < 3; i++) free(owned[t][i]);
    free(forged), free(tables), free(chunks), free(starts), free(shards);
}

static int run_case(void) {
    is_forged = below(2) == 1;
    const int64_t n_arrays = 1 + below(MOST_ARRAYS), n_boxes = below(MOST_BOXES + 1);
    Array *const arrays = exactly(n_arrays * (int64_t)sizeof(Array));
    Wanted *const boxes = exactly(n_boxes * (int64_t)sizeof(Wanted));
    for (int64_t i = 0; i < n_arrays; i++) make_array(arrays + i);
    for (int64_t i = 0; i < n_boxes; i++) make_box(boxes + i, arrays, n_arrays);
    const int64_t n = spinezarr_count_pieces(arrays, n_arrays, boxes, n_boxes);
    require(is_forged || n >= 0, "a sound box is refused");
    int is_planned = 0;
    if (n >= 0 && n <= MOST_PIECES) {
        Piece *const pieces = exactly(n * (int64_t)sizeof(Piece));
        Place *const places = exactly(n * (int64_t)sizeof(Place));
        Entry *const entries = exactly(2 * n * (int64_t)sizeof(Entry));
        const int64_t n_places =
            spinezarr_plan(arrays, n_arrays, boxes, n_boxes, pieces, places, entries, n);
        require(spinezarr_plan(arrays, n_arrays, boxes, n_boxes, NULL, NULL, NULL, n + 1) == -1,
                "another number of pieces");
        require(is_forged || n_places >= 0, "a sound plan is refused");
        is_planned = n_places >= 0;
        if (is_planned) check(arrays, boxes, n_boxes, pieces, n, places, n_places);
        if (is_planned) locate(arrays, n_arrays, places, n_places);
        free(pieces), free(places), free(entries);
    }
    free(arrays), free(boxes);
    return is_planned;
}

int main(int argc, char **argv) {
    require(argc == 3, "plan_driver FIRST COUNT");
    const int64_t first = atoll(argv[1]), count = atoll(argv[2]);
    signal(SIGABRT, aborted);
    int64_t n_planned = 0;
    for (int64_t i = first; i < first + count; i++) {
        start_case(i);
        n_planned += run_case();
    }
    printf("%lld cases of planning: %lld planned\n", (long long)count, (long long)n_planned);
    return 0;
}
