/* Runs the kernel on forged chunks and tables: kernel_driver CORPUS FIRST COUNT.
 *
 * It is compiled together with the kernel, under sanitizers. Each buffer is an allocation of just
 * its size, so that every access outside one is seen. Each case runs twice, with other bytes in the
 * memory that the kernel was given: voxels that depend on them would leak other memory.
 *
 * Cases are numbered; case n is the same wherever it runs. A failure names it.
 */
#define _GNU_SOURCE
#include <sys/syscall.h>
#undef SYS_preadv2 /* so that chunks are fetched ahead, as from a slow disk */
#include "kernel.c"

#include "driver.h"

enum { MOST_CHUNKS = 4, MOST_PIECES = 3, MOST = MOST_CHUNKS * MOST_PIECES };
enum { BYTES = 1, TABLES = 2 }; /* what is forged */

enum { RECORD_NUMBERS = 11 };

typedef struct {
    int64_t n_packed, n_bytes, itemsize, shape_zyx[3], block_bytes, n_blocks, encoding, voxels_crc32c;
    int64_t is_known;
    int64_t *starts;          /* of the blocks in ``packed``, and where the last one ends */
    uint8_t *packed, *voxels; /* the blocks with their checksums; the decoded chunk */
} Record;

/* A chunk before anything was forged, and the memory that belongs to it. */
typedef struct {
    const Record *record;
    uint8_t *data; /* the blocks that were fetched */
    int64_t n_data;
    int is_changed;
} Origin;

typedef struct {
    uint8_t *memory;
    int64_t size, first; /* bytes, and which of them is the first voxel */
    uint8_t *marks;      /* 1: a chunk that failed goes there; 2: one that is done; 3: both */
} Target;

typedef struct {
    int n_chunks, n_pieces;
    Origin origins[MOST_CHUNKS];
    Chunk chunks[MOST_CHUNKS];
    Piece pieces[MOST];
    Output outputs[MOST];
    Target targets[MOST];
    int64_t *starts, n_starts;
    int64_t decoded_bytes, max_blocks;
} Case;

static Record *records;
static int64_t n_records;

static void read_records(const char *path) {
    FILE *file = fopen(path, "rb");
    require(file != NULL && fread(&n_records, 8, 1, file) == 1, "no corpus");
    records = exactly(n_records * (int64_t)sizeof(Record));
    for (int64_t i = 0; i < n_records; i++) {
        Record *record = records + i;
        require(fread(record, 8, RECORD_NUMBERS, file) == RECORD_NUMBERS, "a short corpus");
        const size_t n_starts = (size_t)record->n_blocks + 1;
        record->starts = exactly((int64_t)n_starts * 8);
        require(fread(record->starts, 8, n_starts, file) == n_starts, "a short corpus");
        record->packed = exactly(record->n_packed), record->voxels = exactly(record->n_bytes);
        size_t n = fread(record->packed, 1, (size_t)record->n_packed, file);
        n += fread(record->voxels, 1, (size_t)record->n_bytes, file);
        require(n == (size_t)(record->n_packed + record->n_bytes), "a short corpus");
    }
    fclose(file);
}

/* An output of a shape: exactly its memory, with steps and permuted axes. */
static void make_output(Output *output, Target *target, const int64_t *shape, int64_t itemsize) {
    int64_t step = itemsize, before = 0, behind = 0;
    for (int axis = 2; axis >= 0; axis--) {
        step *= below(4) ? 1 : 2;
        output->shape_zyx[axis] = shape[axis];
        output->stride_zyx[axis] = below(5) ? step : -step;
        const int64_t reach = output->stride_zyx[axis] * (shape[axis] - 1);
        if (reach < 0) before -= reach; else behind += reach;
        step *= shape[axis];
    }
    output->itemsize = itemsize;
    target->size = before + behind + itemsize, target->first = before;
    target->memory = exactly(target->size), target->marks = exactly(target->size);
    memset(target->marks, 0, (size_t)target->size);
    output->data = target->memory + before;
}

/* A random box of a chunk, into an output that is larger by a few voxels. */
static void make_share(Case *c, const Record *record) {
    Piece *piece = c->pieces + c->n_pieces;
    int64_t shape[3];
    const int is_whole = !below(5);
    for (int axis = 0; axis < 3; axis++) {
        const int64_t side = record->shape_zyx[axis], start = is_whole ? 0 : below(side);
        const int64_t n = is_whole ? side : 1 + below(side - start);
        const int64_t within = below(3) ? 0 : below(3);
        piece->within_chunk_zyx[axis] = start, piece->shape_zyx[axis] = n;
        piece->within_output_zyx[axis] = within;
        shape[axis] = within + n + (below(3) ? 0 : below(3));
    }
    piece->output = c->n_pieces;
    make_output(c->outputs + c->n_pieces, c->targets + c->n_pieces, shape, record->itemsize);
    c->n_pieces++;
}

static void put32(uint8_t *p, uint32_t value) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(value >> 8 * i);
}

/* Change bytes of an encoded block, or of a stream, which may get shorter or longer. */
static void change_bytes(uint8_t **data, int64_t *n) {
    for (int64_t changes = 1 + below(4); changes > 0; changes--) {
        const int64_t nears[] = {4, 16, 200, *n}, near = nears[below(4)];
        const int64_t at = below(near < *n ? near : *n), left = *n - at;
        const Record *other = records + below(n_records);
        switch (below(8)) {
        case 0: case 1: (*data)[at] ^= (uint8_t)(1 << below(8)); break;
        case 2: case 3: (*data)[at] = (uint8_t)draw(); break;
        case 4:
            if (left >= 4) put32(*data + at, (uint32_t)made_up(*n));
            break;
        case 5: { /* of 255 bytes, many mean long lengths */
            const int64_t most = below(3) && left > 40 ? 40 : left, filled = 1 + below(most);
            memset(*data + at, below(2) ? 255 : 0, (size_t)filled);
            break;
        }
        case 6: { /* a piece of another chunk */
            const int64_t from = below(other->n_packed), has = other->n_packed - from;
            memcpy(*data + at, other->packed + from, (size_t)(1 + below(has < left ? has : left)));
            break;
        }
        default: { /* another length */
            const int64_t size = below(3) ? 1 + below(*n) : *n + below(70);
            uint8_t *other_data = exactly(size);
            for (int64_t i = 0; i < size; i++)
                other_data[i] = i < *n ? (*data)[i] : (uint8_t)draw();
            free(*data);
            *data = other_data, *n = size;
        }
        }
    }
}

/* The first and last voxels of a chunk that its pieces need. */
static void wanted_voxels(const Case *c, const Chunk *chunk, __int128 *first, __int128 *last) {
    const __int128 row = chunk->shape_zyx[2], plane = row * chunk->shape_zyx[1];
    *first = (__int128)1 << 100, *last = -1;
    for (int64_t i = 0; i < chunk->n_pieces; i++) {
        const Piece *piece = c->pieces + chunk->first_piece + i;
        const int64_t *start = piece->within_chunk_zyx, *n = piece->shape_zyx;
        const __int128 low = start[0] * plane + start[1] * row + start[2];
        const __int128 high = low + (n[0] - 1) * plane + (n[1] - 1) * row + n[2] - 1;
        if (low < *first) *first = low;
        if (high > *last) *last = high;
    }
}

/* Put the fetched blocks of a record one after the other, some of them changed; append where they lie. */
static void put_blocks(Case *c, Origin *origin, const Chunk *chunk, int kind) {
    const Record *record = origin->record;
    int64_t at = below(3) ? 0 : below(1 << 20); /* starts may count from anywhere */
    c->starts = realloc(c->starts, (size_t)(c->n_starts + chunk->n_blocks + 1) * 8);
    require(c->starts != NULL, "no memory");
    origin->data = exactly(record->n_packed + chunk->n_blocks * 4096), origin->n_data = 0;
    const int is_changed = kind & BYTES && below(3);
    for (int64_t i = 0; i < chunk->n_blocks; i++) {
        const int64_t number = chunk->first_block + i, begin = record->starts[number];
        int64_t n = record->starts[number + 1] - begin - CHECKSUM;
        uint8_t *block = exactly(n);
        memcpy(block, record->packed + begin, (size_t)n);
        if (is_changed && below(2)) {
            origin->is_changed = 1;
            change_bytes(&block, &n);
        }
        c->starts[c->n_starts++] = at;
        memcpy(origin->data + origin->n_data, block, (size_t)n);
        put32(origin->data + origin->n_data + n, block_checksum(chunk->voxels_crc32c, number, block, n));
        origin->n_data += n + CHECKSUM, at += n + CHECKSUM;
        free(block);
    }
    c->starts[c->n_starts++] = at;
    uint8_t *data = exactly(origin->n_data);
    memcpy(data, origin->data, (size_t)origin->n_data);
    free(origin->data);
    origin->data = data;
}

static void make_chunk(Case *c, int i, int kind) {
    Origin *origin = c->origins + i;
    const Record *record = origin->record = records + below(n_records);
    Chunk *chunk = c->chunks + i;
    chunk->data = NULL, chunk->offset = 0;
    chunk->first_piece = c->n_pieces, chunk->n_pieces = 1 + below(MOST_PIECES);
    chunk->itemsize = record->itemsize, chunk->fd = -1, chunk->status = -1;
    memcpy(chunk->shape_zyx, record->shape_zyx, sizeof(chunk->shape_zyx));
    chunk->block_bytes = record->block_bytes, chunk->encoding = (int32_t)record->encoding;
    chunk->voxels_crc32c = (uint32_t)record->voxels_crc32c;
    for (int64_t j = 0; j < chunk->n_pieces; j++) make_share(c, record);
    __int128 first, last;
    wanted_voxels(c, chunk, &first, &last);
    const int64_t per_block = record->block_bytes / record->itemsize;
    int64_t first_block = (int64_t)first / per_block, last_block = (int64_t)last / per_block;
    if (below(2)) first_block -= below(first_block + 1); /* blocks that nobody wants */
    if (below(2)) last_block += below(record->n_blocks - last_block);
    chunk->first_block = first_block, chunk->n_blocks = last_block + 1 - first_block;
    chunk->first_start = c->n_starts;
    put_blocks(c, origin, chunk, kind);
    chunk->size = origin->n_data;
    if (record->n_bytes > c->decoded_bytes) c->decoded_bytes = record->n_bytes;
    if (record->n_blocks > c->max_blocks) c->max_blocks = record->n_blocks;
}

static void change_tables(Case *c) {
    for (int64_t changes = 1 + below(3); changes > 0; changes--) {
        const int i = (int)below(c->n_chunks);
        Chunk *chunk = c->chunks + i;
        int64_t *const of_chunk[] = {
            &chunk->offset,       &chunk->size,         &chunk->first_piece, &chunk->n_pieces,
            &chunk->itemsize,     chunk->shape_zyx,     chunk->shape_zyx + 1, chunk->shape_zyx + 2,
            &chunk->block_bytes,  &chunk->first_block,  &chunk->n_blocks,    &chunk->first_start,
            &c->decoded_bytes,    &c->max_blocks};
        c->origins[i].is_changed = 1;
        if (!below(12)) {
            const int64_t big = (int64_t)1 << below(40); /* products that overflow */
            for (int axis = 0; axis < 3; axis++) chunk->shape_zyx[axis] = big;
        } else if (!below(12)) { /* other blocks, which may lack wanted voxels */
            const int64_t n = c->origins[i].record->n_blocks;
            chunk->first_block = below(n), chunk->n_blocks = 1 + below(n - chunk->first_block);
        } else if (!below(12)) {
            chunk->encoding = below(2) ? (int32_t)below(4) : (int32_t)made_up(chunk->encoding);
        } else if (!below(4)) {
            int64_t *start = c->starts + below(c->n_starts);
            *start = below(2) ? (int64_t)((uint64_t)*start + (uint64_t)below(40) - 20)
                              : made_up(*start);
            for (int j = 0; j < c->n_chunks; j++) c->origins[j].is_changed = 1;
        } else if (below(2)) {
            int64_t *field = of_chunk[below(14)];
            *field = made_up(*field);
            if ((field == &chunk->offset || field == &chunk->size) && below(2))
                *field = INT64_MAX - below(1 << 13);
            if (field == &c->decoded_bytes || field == &c->max_blocks)
                for (int j = 0; j < c->n_chunks; j++) c->origins[j].is_changed = 1;
        } else {
            Piece *piece = c->pieces + below(c->n_pieces);
            int64_t *field = &piece->output + below(10);
            *field = made_up(*field);
            for (int j = 0; j < c->n_chunks; j++) c->origins[j].is_changed = 1;
        }
    }
}

static int64_t clamped(int64_t n) { return n < 0 ? 0 : n > MAX_CHUNK_BYTES ? MAX_CHUNK_BYTES : n; }

/* Put the chunks where the kernel reads them: in memory of just their size, or in a file. */
static void place(Case *c, FILE *file) {
    int64_t end = 0;
    for (int i = 0; i < c->n_chunks; i++) {
        Chunk *chunk = c->chunks + i;
        Origin *origin = c->origins + i;
        if (below(2)) {
            if (below(3) == 0) end += below(5000);
            chunk->fd = below(30) ? fileno(file) : (below(2) ? -1 : 1 << 20);
            if (chunk->fd != fileno(file)) origin->is_changed = 1;
            if (chunk->offset == 0) chunk->offset = end;
            const ssize_t n = pwrite(fileno(file), origin->data, (size_t)origin->n_data, end);
            require(n == origin->n_data, "no file");
            end += origin->n_data;
            continue;
        }
        const int64_t most = packed_bytes(clamped(c->decoded_bytes), clamped(c->max_blocks));
        if (chunk->size != origin->n_data) { /* ``data`` has ``size`` bytes, if it can */
            const int64_t n = chunk->size > 0 && chunk->size <= most ? chunk->size : 1;
            const int64_t kept = n < origin->n_data ? n : origin->n_data;
            uint8_t *data = exactly(n);
            memcpy(data, origin->data, (size_t)kept);
            memset(data + kept, 0, (size_t)(n - kept));
            free(origin->data);
            origin->data = data;
        }
        chunk->data = origin->data;
    }
}

/* The checks of the kernel, repeated in 128-bit arithmetic. */
static int fits(int64_t start, __int128 n, int64_t side) {
    return start >= 0 && n >= 1 && start + n <= side;
}

static int has_sound_blocks(const Case *c, const Chunk *chunk, int64_t n_bytes) {
    const int64_t block_bytes = chunk->block_bytes;
    if (block_bytes < 1 || n_bytes % block_bytes || block_bytes % chunk->itemsize) return 0;
    if (!fits(chunk->first_block, chunk->n_blocks, n_bytes / block_bytes)) return 0;
    if (!fits(chunk->first_start, (__int128)chunk->n_blocks + 1, c->n_starts)) return 0;
    const int64_t *starts = c->starts + chunk->first_start;
    for (int64_t i = 0; i < chunk->n_blocks; i++)
        if (starts[i] < 0 || (__int128)starts[i] + 9 > starts[i + 1]) return 0;
    if (starts[chunk->n_blocks] - starts[0] != chunk->size) return 0;
    __int128 first, last;
    wanted_voxels(c, chunk, &first, &last);
    const int64_t per_block = block_bytes / chunk->itemsize;
    return first >= (__int128)chunk->first_block * per_block &&
           last < ((__int128)chunk->first_block + chunk->n_blocks) * per_block;
}

static int is_sound(const Case *c, const Chunk *chunk) {
    const int64_t limit = clamped(c->decoded_bytes);
    if (chunk->size < 9 || chunk->size > limit + 36 * clamped(c->max_blocks)) return 0;
    if (chunk->offset < 0 || (__int128)chunk->offset + chunk->size > INT64_MAX) return 0;
    const int64_t item = chunk->itemsize;
    if (item < 1 || item > 8) return 0;
    __int128 n = item;
    for (int axis = 0; axis < 3; axis++) {
        if (chunk->shape_zyx[axis] < 1) return 0;
        if ((n *= chunk->shape_zyx[axis]) > limit) return 0;
    }
    if (!fits(chunk->first_piece, chunk->n_pieces, c->n_pieces)) return 0;
    for (int64_t i = 0; i < chunk->n_pieces; i++) {
        const Piece *piece = c->pieces + chunk->first_piece + i;
        if (piece->output < 0 || piece->output >= c->n_pieces) return 0;
        const Output *output = c->outputs + piece->output;
        if (output->itemsize != item) return 0;
        for (int axis = 0; axis < 3; axis++) {
            const int64_t side = piece->shape_zyx[axis];
            if (!fits(piece->within_chunk_zyx[axis], side, chunk->shape_zyx[axis])) return 0;
            if (!fits(piece->within_output_zyx[axis], side, output->shape_zyx[axis])) return 0;
        }
    }
    return has_sound_blocks(c, chunk, (int64_t)n);
}

/* Visit the voxels of a piece: mark their positions, or compare them with those of a record. */
static void visit(const Case *c, const Piece *piece, const Record *record, int mark) {
    const Output *output = c->outputs + piece->output;
    const Target *target = c->targets + piece->output;
    const int64_t *n = piece->shape_zyx, *in = piece->within_output_zyx, *step = output->stride_zyx;
    for (int64_t z = 0; z < n[0]; z++)
        for (int64_t y = 0; y < n[1]; y++)
            for (int64_t x = 0; x < n[2]; x++) {
                const int64_t at = target->first + (in[0] + z) * step[0] + (in[1] + y) * step[1] +
                                   (in[2] + x) * step[2];
                require(at >= 0 && at + output->itemsize <= target->size, "a wrong driver");
                for (int64_t b = 0; mark && b < output->itemsize; b++) target->marks[at + b] |= mark;
                if (!record) continue;
                const int64_t *from = piece->within_chunk_zyx, *shape = record->shape_zyx;
                const int64_t voxel =
                    ((from[0] + z) * shape[1] + from[1] + y) * shape[2] + from[2] + x;
                require(!memcmp(target->memory + at, record->voxels + voxel * record->itemsize,
                                (size_t)record->itemsize),
                        "wrong voxels");
            }
}

static void run(Case *c, uint8_t pattern) {
    const int64_t n = spinezarr_scratch_bytes(clamped(c->decoded_bytes), clamped(c->max_blocks));
    uint8_t *scratch = exactly(n);
    memset(scratch, pattern, (size_t)n);
    for (int i = 0; i < c->n_pieces; i++)
        memset(c->targets[i].memory, pattern, (size_t)c->targets[i].size);
    /* The tables have allocations of just their size too. */
    Chunk *chunks = exactly(c->n_chunks * (int64_t)sizeof(Chunk));
    Piece *pieces = exactly(c->n_pieces * (int64_t)sizeof(Piece));
    Output *outputs = exactly(c->n_pieces * (int64_t)sizeof(Output));
    memcpy(chunks, c->chunks, (size_t)c->n_chunks * sizeof(Chunk));
    memcpy(pieces, c->pieces, (size_t)c->n_pieces * sizeof(Piece));
    memcpy(outputs, c->outputs, (size_t)c->n_pieces * sizeof(Output));
    int64_t *starts = exactly(c->n_starts * 8);
    memcpy(starts, c->starts, (size_t)c->n_starts * 8);
    spinezarr_fill(chunks, 0, c->n_chunks, pieces, c->n_pieces, outputs, c->n_pieces, starts,
                   c->n_starts, scratch, c->decoded_bytes, c->max_blocks);
    for (int i = 0; i < c->n_chunks; i++) c->chunks[i].status = chunks[i].status;
    free(scratch), free(chunks), free(pieces), free(outputs), free(starts);
}

static void check(Case *c) {
    int statuses[MOST_CHUNKS];
    run(c, 0xA5);
    for (int i = 0; i < c->n_chunks; i++) {
        const Chunk *chunk = c->chunks + i;
        const Origin *origin = c->origins + i;
        const int status = statuses[i] = chunk->status, sound = is_sound(c, chunk);
        require(status >= DONE && status <= NOT_READ, "no status");
        require(sound || status == DAMAGED, "a chunk was taken that does not fit together");
        if (!origin->is_changed)
            require(status == (origin->record->is_known ? DONE : UNKNOWN), "a wrong status");
        for (int64_t j = 0; sound && j < chunk->n_pieces; j++)
            visit(c, c->pieces + chunk->first_piece + j,
                  !origin->is_changed && status == DONE ? origin->record : NULL,
                  status == DONE ? 2 : 1);
    }
    uint8_t *before[MOST];
    for (int i = 0; i < c->n_pieces; i++) {
        const Target *target = c->targets + i;
        for (int64_t at = 0; at < target->size; at++)
            require(target->marks[at] || target->memory[at] == 0xA5, "written beside a piece");
        before[i] = exactly(target->size);
        memcpy(before[i], target->memory, (size_t)target->size);
    }
    run(c, 0x5A);
    for (int i = 0; i < c->n_chunks; i++)
        require(c->chunks[i].status == statuses[i], "another status with other memory");
    for (int i = 0; i < c->n_pieces; i++) {
        const Target *target = c->targets + i;
        for (int64_t at = 0; at < target->size; at++)
            require(target->marks[at] != 2 || target->memory[at] == before[i][at],
                    "voxels of somebody else");
        free(before[i]);
    }
}

/* Decode a single stream. Its input ends where its memory ends; its output has the required slack. */
static void check_lz4(void) {
    const Record *record = records + below(n_records);
    const uint8_t *packed = record->packed;
    if (!record->is_known) return;
    const int64_t at = record->starts[below(record->n_blocks)], block_bytes = record->block_bytes;
    int64_t n = load32(packed + at); /* of the first stream, which may be raw */
    uint8_t *in = exactly(n);
    memcpy(in, packed + at + 4, (size_t)n);
    if (below(4)) change_bytes(&in, &n);
    const int64_t sizes[] = {block_bytes, block_bytes / record->itemsize, 1 + below(block_bytes)};
    const int64_t size = sizes[below(3)], wanted_bytes = below(2) ? size : 1 + below(size);
    uint8_t *out[2];
    int is_valid[2];
    for (int i = 0; i < 2; i++) {
        out[i] = exactly(size + SLACK);
        memset(out[i], i ? 0x5A : 0xA5, (size_t)(size + SLACK));
        is_valid[i] = lz4(in, n, out[i], size, wanted_bytes);
    }
    require(is_valid[0] == is_valid[1], "another answer with other memory");
    require(!is_valid[0] || !memcmp(out[0], out[1], (size_t)wanted_bytes), "bytes of somebody else");
    free(in), free(out[0]), free(out[1]);
}

int main(int argc, char **argv) {
    require(argc == 4, "kernel_driver CORPUS FIRST COUNT");
    signal(SIGABRT, aborted);
    spinezarr_kernel_version();
    read_records(argv[1]);
    const int64_t first = atoll(argv[2]), count = atoll(argv[3]);
    int64_t n_of[NOT_READ + 1] = {0};
    FILE *file = tmpfile();
    require(file != NULL, "no file");
    for (int64_t of_case = first; of_case < first + count; of_case++) {
        start_case(of_case);
        static Case c;
        memset(&c, 0, sizeof(c));
        require(ftruncate(fileno(file), 0) == 0, "no file");
        const int kind = (int)below(4);
        c.n_chunks = 1 + (int)below(MOST_CHUNKS);
        for (int i = 0; i < c.n_chunks; i++) make_chunk(&c, i, kind);
        if (kind & TABLES) change_tables(&c);
        place(&c, file);
        check(&c);
        for (int i = 0; i < 4; i++) check_lz4();
        for (int i = 0; i < c.n_chunks; i++) n_of[c.chunks[i].status]++, free(c.origins[i].data);
        for (int i = 0; i < c.n_pieces; i++) free(c.targets[i].memory), free(c.targets[i].marks);
        free(c.starts);
    }
    printf("%lld cases: %lld chunks done, %lld unknown, %lld damaged, %lld not read\n",
           (long long)count, (long long)n_of[DONE], (long long)n_of[UNKNOWN],
           (long long)n_of[DAMAGED], (long long)n_of[NOT_READ]);
    return 0;
}
