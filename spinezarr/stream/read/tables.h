/* The tables that planning, locating and decoding share with native.py. */
#ifndef SPINEZARR_TABLES_H
#define SPINEZARR_TABLES_H

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Status of a chunk. The caller decodes chunks that are not DONE by other means. */
enum { NOT_TRIED = -1, DONE = 0, UNKNOWN = 1, DAMAGED = 2, NOT_READ = 3 };

/* How the blocks of a chunk are encoded. BACKGROUND is not stored: there is nothing to do. */
enum { OTHER = 0, LZ4 = 1, SHUFFLED_LZ4 = 2, BACKGROUND = 3 };

typedef struct {
    const uint8_t *data; /* bytes of the blocks; NULL to read them from ``fd`` */
    int64_t offset;      /* of the blocks in the file */
    int64_t size;        /* bytes of the blocks with their checksums */
    int64_t first_piece; /* pieces[first_piece : first_piece + n_pieces] are filled */
    int64_t n_pieces;
    int64_t itemsize;
    int64_t shape_zyx[3];
    int64_t block_bytes; /* of a decoded block */
    int64_t first_block; /* the first block whose bytes are here */
    int64_t n_blocks;    /* number of such blocks, one after the other */
    int64_t first_start; /* starts[first_start : first_start + n_blocks + 1] are where they lie */
    int32_t encoding;
    int32_t fd;
    uint32_t voxels_crc32c; /* a part of the checksum of each block */
    int32_t status;
} Chunk;

typedef struct {
    int64_t output; /* outputs[output] is filled */
    int64_t within_output_zyx[3];
    int64_t within_chunk_zyx[3];
    int64_t shape_zyx[3];
} Piece;

typedef struct {
    uint8_t *data; /* first voxel */
    int64_t stride_zyx[3];
    int64_t shape_zyx[3];
    int64_t itemsize;
} Output;

/* A stored array. */
typedef struct {
    int64_t shape_zyx[3];
    int64_t chunk_shape_zyx[3];
    int64_t per_shard_zyx[3]; /* chunks of a shard */
    int64_t itemsize;
    int64_t block_bytes;
    int64_t encoding;
} Array;

/* A box of voxels of an array. */
typedef struct {
    int64_t array;
    int64_t start_zyx[3];
    int64_t stop_zyx[3];
} Wanted;

/* A chunk that boxes need. */
typedef struct {
    int64_t array;
    int64_t chunk_zyx[3];
    int64_t shard_zyx[3];
    int64_t position; /* in its shard, in C order */
    int64_t first_piece;
    int64_t n_pieces;
    int64_t first_block; /* the first block with wanted planes */
    int64_t stop_block;
    int64_t opens_shard; /* 1 for the first chunk of a shard, else 0 */
} Place;

/* A piece before it is sorted. */
typedef struct {
    int64_t key; /* equal for equal chunks, ordered by array, shard, position */
    int64_t box;
    int64_t chunk_zyx[3];
} Entry;

/* Where the chunks of one shard lie, for the places from the end of the row before up to ``stop``. */
typedef struct {
    int64_t stop;
    int64_t shard;                  /* number of the shard; -1 if there is none */
    const int32_t *row_of_position; /* NULL if there is no shard; -1 for a chunk that is not stored */
    int64_t n_positions;
    const int64_t *starts; /* n_rows × n_columns */
    const uint32_t *voxels_crc32c;
    int64_t n_rows;
    int64_t n_columns;
} ShardTable;

#endif
