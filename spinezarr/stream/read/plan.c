/* Plans which chunks some boxes need, and locates their blocks, without Python.
 *
 * plan.py and chunk_locations.py say what the tables mean, and do the same without this code.
 *
 * The numbers of arrays come from the metadata of a store, so they are not trusted: a product that
 * leaves 64 bits, a box outside of its array, and a table that has not the chunk are found. Only
 * addresses and the lengths that come with them are trusted.
 */
#include "tables.h"

#include <string.h>

/* Returns whether the numbers of an array make sense, and sets the number of its chunk places. */
static int has_shape(const Array *array, int64_t *n_places) {
    int64_t n_bytes = array->itemsize, n = 1;
    if (array->itemsize < 1 || array->block_bytes < 1) return 0;
    for (int axis = 0; axis < 3; axis++) {
        const int64_t side = array->chunk_shape_zyx[axis], per_shard = array->per_shard_zyx[axis];
        int64_t shard;
        if (array->shape_zyx[axis] < 1 || side < 1 || per_shard < 1) return 0;
        if (__builtin_mul_overflow(n_bytes, side, &n_bytes)) return 0;
        if (__builtin_mul_overflow(side, per_shard, &shard)) return 0;
        const int64_t n_shards = (array->shape_zyx[axis] - 1) / shard + 1;
        if (__builtin_mul_overflow(n, n_shards, &n)) return 0;
        if (__builtin_mul_overflow(n, per_shard, &n)) return 0;
    }
    *n_places = n;
    return 1;
}

/* Returns the number of pieces of a box; -1 if it leaves its array, or has no voxels. */
static int64_t n_pieces_of(const Wanted *box, const Array *arrays, int64_t n_arrays) {
    if (box->array < 0 || box->array >= n_arrays) return -1;
    const Array *const array = arrays + box->array;
    int64_t n = 1, n_places;
    if (!has_shape(array, &n_places)) return -1;
    for (int axis = 0; axis < 3; axis++) {
        const int64_t start = box->start_zyx[axis], stop = box->stop_zyx[axis];
        const int64_t side = array->chunk_shape_zyx[axis];
        if (start < 0 || start >= stop || stop > array->shape_zyx[axis]) return -1;
        if (__builtin_mul_overflow(n, (stop - 1) / side - start / side + 1, &n)) return -1;
    }
    return n;
}

/* Returns the number of pieces of some boxes; -1 - i if box i, or its array, makes no sense. */
EXPORT int64_t spinezarr_count_pieces(const Array *arrays, int64_t n_arrays, const Wanted *boxes,
                                      int64_t n_boxes) {
    int64_t total = 0;
    for (int64_t i = 0; i < n_boxes; i++) {
        const int64_t n = n_pieces_of(boxes + i, arrays, n_arrays);
        if (n < 0 || __builtin_add_overflow(total, n, &total)) return -1 - i;
    }
    return total;
}

/* Sorts by natural merges; equal keys keep their order. Returns the one of the two that is sorted.
 *
 * The pieces of a box are in order already, unless it crosses shards. */
static Entry *sorted(Entry *from, Entry *to, int64_t n) {
    for (;;) {
        int64_t at = 0, n_merges = 0;
        while (at < n) {
            int64_t middle = at + 1;
            while (middle < n && from[middle - 1].key <= from[middle].key) middle++;
            if (at == 0 && middle == n) return from;
            int64_t end = middle < n ? middle + 1 : n;
            while (end < n && from[end - 1].key <= from[end].key) end++;
            int64_t a = at, b = middle, out = at;
            while (a < middle && b < end) to[out++] = from[b].key < from[a].key ? from[b++] : from[a++];
            while (a < middle) to[out++] = from[a++];
            while (b < end) to[out++] = from[b++];
            at = end;
            n_merges++;
        }
        Entry *const other = from;
        from = to;
        to = other;
        if (n_merges <= 1) return from;
    }
}

/* Sets the first key of an array: the keys of the arrays before it are smaller. */
static int set_first_key(const Array *arrays, int64_t number, int64_t *first) {
    int64_t n_places = 0;
    *first = 0;
    for (int64_t i = 0; i < number; i++)
        if (!has_shape(arrays + i, &n_places) || __builtin_add_overflow(*first, n_places, first))
            return 0;
    return has_shape(arrays + number, &n_places) && *first <= INT64_MAX - n_places;
}

/* Lists the pieces of all boxes with the keys of their chunks; returns whether all keys fit. */
static int list_pieces(const Array *arrays, const Wanted *boxes, int64_t n_boxes, Entry *entries) {
    int64_t n = 0;
    for (int64_t i = 0; i < n_boxes; i++) {
        const Array *const array = arrays + boxes[i].array;
        int64_t base, first[3], last[3], shards[3];
        if (!set_first_key(arrays, boxes[i].array, &base)) return 0;
        const int64_t *const per = array->per_shard_zyx;
        for (int axis = 0; axis < 3; axis++) {
            const int64_t side = array->chunk_shape_zyx[axis];
            first[axis] = boxes[i].start_zyx[axis] / side;
            last[axis] = (boxes[i].stop_zyx[axis] - 1) / side;
            shards[axis] = (array->shape_zyx[axis] - 1) / (side * per[axis]) + 1;
        }
        const int64_t per_shard = per[0] * per[1] * per[2];
        for (int64_t z = first[0]; z <= last[0]; z++)
            for (int64_t y = first[1]; y <= last[1]; y++)
                for (int64_t x = first[2]; x <= last[2]; x++) {
                    const int64_t shard =
                        (z / per[0] * shards[1] + y / per[1]) * shards[2] + x / per[2];
                    const int64_t within =
                        (z % per[0] * per[1] + y % per[1]) * per[2] + x % per[2];
                    const Entry entry = {base + shard * per_shard + within, i, {z, y, x}};
                    entries[n++] = entry;
                }
    }
    return 1;
}

static void set_place(Place *place, const Entry *entry, const Wanted *box, const Array *array) {
    int64_t position = 0;
    place->array = box->array;
    for (int axis = 0; axis < 3; axis++) {
        const int64_t per = array->per_shard_zyx[axis];
        place->chunk_zyx[axis] = entry->chunk_zyx[axis];
        place->shard_zyx[axis] = entry->chunk_zyx[axis] / per;
        position = position * per + entry->chunk_zyx[axis] % per;
    }
    place->position = position;
}

static void set_piece(Piece *piece, const Entry *entry, const Wanted *box, const Array *array) {
    piece->output = entry->box;
    for (int axis = 0; axis < 3; axis++) {
        const int64_t side = array->chunk_shape_zyx[axis];
        const int64_t origin = entry->chunk_zyx[axis] * side;
        const int64_t start = box->start_zyx[axis], stop = box->stop_zyx[axis];
        const int64_t begin = start > origin ? start : origin;
        const int64_t end = stop - origin < side ? stop : origin + side;
        piece->within_output_zyx[axis] = begin - start;
        piece->within_chunk_zyx[axis] = begin - origin;
        piece->shape_zyx[axis] = end - begin;
    }
}

/* Sets the blocks of a chunk that hold the planes along z that its pieces meet. */
static void set_blocks(Place *place, const Piece *pieces, const Array *array) {
    const int64_t plane =
        array->chunk_shape_zyx[1] * array->chunk_shape_zyx[2] * array->itemsize;
    int64_t start = array->chunk_shape_zyx[0], stop = 0;
    for (int64_t i = place->first_piece; i < place->first_piece + place->n_pieces; i++) {
        const int64_t first = pieces[i].within_chunk_zyx[0], end = first + pieces[i].shape_zyx[0];
        if (first < start) start = first;
        if (end > stop) stop = end;
    }
    place->first_block = start * plane / array->block_bytes;
    place->stop_block = (stop * plane - 1) / array->block_bytes + 1;
}

/* Fills ``pieces``, and ``places`` with the chunks that the boxes need. There is room for
 * ``n_pieces`` of each, and for twice as many entries; spinezarr_count_pieces returned that number.
 * Returns the number of chunks; -1 if the numbers of the arrays are too large. */
EXPORT int64_t spinezarr_plan(const Array *arrays, int64_t n_arrays, const Wanted *boxes,
                              int64_t n_boxes, Piece *pieces, Place *places, Entry *entries,
                              int64_t n_pieces) {
    if (spinezarr_count_pieces(arrays, n_arrays, boxes, n_boxes) != n_pieces) return -1;
    if (!list_pieces(arrays, boxes, n_boxes, entries)) return -1;
    const Entry *const order = sorted(entries, entries + n_pieces, n_pieces);
    int64_t n = 0;
    for (int64_t i = 0; i < n_pieces; i++) {
        const Wanted *const box = boxes + order[i].box;
        const Array *const array = arrays + box->array;
        set_piece(pieces + i, order + i, box, array);
        if (i == 0 || order[i].key != order[i - 1].key) {
            set_place(places + n, order + i, box, array);
            places[n].first_piece = i;
            places[n++].n_pieces = 0;
        }
        places[n - 1].n_pieces++;
    }
    for (int64_t i = 0; i < n; i++) {
        Place *const place = places + i;
        set_blocks(place, pieces, arrays + place->array);
        place->opens_shard = i == 0 || place->array != place[-1].array ||
                             memcmp(place->shard_zyx, place[-1].shard_zyx, sizeof place->shard_zyx);
    }
    return n;
}

/* Returns the row of a place in the table of its shard; -1 if the chunk is not stored. */
static int64_t row_of(const Place *place, const ShardTable *table) {
    if (!table->row_of_position) return -1;
    if (place->position < 0 || place->position >= table->n_positions) return -1;
    const int64_t row = table->row_of_position[place->position];
    return row < table->n_rows ? row : -1;
}

/* Fills a row of ``chunks``, and one of ``starts`` with ``n_columns``, for each place. ``tables`` has
 * a row for each run of places in one shard. Returns 0 if the numbers do not fit together. */
EXPORT int32_t spinezarr_locate(const Array *arrays, int64_t n_arrays, const Place *places,
                                int64_t n_places, const ShardTable *tables, int64_t n_tables,
                                Chunk *chunks, int64_t *starts, int64_t n_columns,
                                int64_t *shards) {
    int64_t at = 0;
    memset(chunks, 0, (size_t)n_places * sizeof(Chunk));
    memset(starts, 0, (size_t)(n_places * n_columns) * sizeof(int64_t));
    for (int64_t t = 0; t < n_tables; t++) {
        const ShardTable *const table = tables + t;
        if (table->stop < at || table->stop > n_places || table->n_columns > n_columns) return 0;
        for (; at < table->stop; at++) {
            const Place *const place = places + at;
            if (place->array < 0 || place->array >= n_arrays) return 0;
            if (place->first_block < 0 || place->stop_block <= place->first_block) return 0;
            if (place->stop_block >= n_columns) return 0;
            const Array *const array = arrays + place->array;
            Chunk *const chunk = chunks + at;
            chunk->first_piece = place->first_piece;
            chunk->n_pieces = place->n_pieces;
            chunk->itemsize = array->itemsize;
            memcpy(chunk->shape_zyx, array->chunk_shape_zyx, sizeof chunk->shape_zyx);
            chunk->block_bytes = array->block_bytes;
            chunk->first_block = place->first_block;
            chunk->n_blocks = place->stop_block - place->first_block;
            chunk->first_start = at * n_columns + place->first_block;
            chunk->encoding = BACKGROUND;
            chunk->fd = -1;
            chunk->status = NOT_TRIED;
            shards[at] = table->shard;
            const int64_t row = row_of(place, table);
            if (row < 0) continue;
            if (place->stop_block >= table->n_columns) return 0;
            const int64_t *const of_row = table->starts + row * table->n_columns;
            memcpy(starts + at * n_columns, of_row, (size_t)table->n_columns * sizeof(int64_t));
            chunk->offset = of_row[place->first_block];
            chunk->size = of_row[place->stop_block] - chunk->offset;
            chunk->voxels_crc32c = table->voxels_crc32c[row];
            chunk->encoding = (int32_t)array->encoding;
        }
    }
    return at == n_places;
}

EXPORT int64_t spinezarr_array_bytes(void) { return (int64_t)sizeof(Array); }
EXPORT int64_t spinezarr_wanted_bytes(void) { return (int64_t)sizeof(Wanted); }
EXPORT int64_t spinezarr_place_bytes(void) { return (int64_t)sizeof(Place); }
EXPORT int64_t spinezarr_entry_bytes(void) { return (int64_t)sizeof(Entry); }
EXPORT int64_t spinezarr_shard_table_bytes(void) { return (int64_t)sizeof(ShardTable); }
