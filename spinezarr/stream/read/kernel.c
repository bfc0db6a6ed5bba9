/* Reads boxes of voxels from encoded chunks, without Python.
 *
 * A chunk consists of blocks, each followed by its checksum; the caller knows where they lie, and
 * which of them hold wanted voxels. This code decodes LZ4 streams, with or without shuffled bytes,
 * which is what the default profile writes. Any other chunk gets the status UNKNOWN, and the caller
 * decodes it by other means. Only what the wanted voxels need is decoded: a stream is decoded up to its
 * last wanted byte. Shuffled bytes are put together on their way into the output.
 *
 * Sources: docs/reference/store-format.md, Blosc 1 chunk format (README_CHUNK_FORMAT.rst of C-Blosc), LZ4 block
 * format (lz4_Block_format.md of LZ4), CRC-32C (RFC 3720, appendix B.4).
 *
 * Buffers are not trusted: every length and offset is checked, even if the checksum is correct. The
 * tables are not trusted either, as their numbers come from the metadata of a store: a chunk whose
 * numbers do not fit together is DAMAGED. Only addresses are trusted: ``data`` of a chunk has ``size``
 * bytes, and ``data`` of an output, with its strides, has its shape.
 */
#define _GNU_SOURCE
#include "kernel.h"
#include "processor.h"
#include "tables.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

#if defined(__x86_64__)
#define X86 1
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { VERSION = 6, MAX_ITEMSIZE = 8 };
enum { AT_ONCE = 64 };

enum { MIN_SPLIT_ITEMS = 128 }; /* smaller blocks are not split into streams */
enum { MIN_BLOCK = 4 + 1 + CHECKSUM }; /* a stream of one byte after its size, and the checksum */

/* Limit for a decoded chunk, as LARGEST_CHUNK_BYTES in Python. The product of two such numbers fits
 * into 64 bits easily. */
static const int64_t MAX_CHUNK_BYTES = (int64_t)1 << 24;

/* Arguments of one call, the same for all its chunks. */
typedef struct {
    const Piece *pieces;
    int64_t n_pieces;
    const Output *outputs;
    int64_t n_outputs;
    const int64_t *starts; /* from any origin, in ascending order for each chunk */
    int64_t n_starts;
    uint8_t *scratch;
    int64_t packed_bytes;  /* of a chunk, at most */
    int64_t decoded_bytes; /* of a chunk, at most */
} Call;

static uint32_t load32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* crc32c ------------------------------------------------------------------------------------- */

#if X86
/* Three independent streams hide the latency of the instruction; they are joined by multiplying
 * with x^(8 * n) modulo the polynomial, from a table for the one length in use. */
enum { STRIPE = 1024 };
static uint32_t shift_table[2][4][256];

static uint32_t multiply(uint32_t a, uint32_t b) { /* polynomials over GF(2), reflected */
    uint32_t product = 0;
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
        if (a & bit) product ^= b;
        b = b & 1 ? b >> 1 ^ 0x82F63B78u : b >> 1;
    }
    return product;
}

static void make_shift_tables(void) {
    for (int which = 0; which < 2; which++) {
        uint32_t power = 0x80000000u; /* x^0 */
        for (int64_t i = 0; i < 8 * STRIPE * (which + 1); i++)
            power = power & 1 ? power >> 1 ^ 0x82F63B78u : power >> 1;
        for (int byte = 0; byte < 4; byte++)
            for (uint32_t value = 0; value < 256; value++)
                shift_table[which][byte][value] = multiply(power, value << 8 * byte);
    }
}

static uint32_t shifted(uint32_t crc, int which) {
    return shift_table[which][0][crc & 255] ^ shift_table[which][1][crc >> 8 & 255] ^
           shift_table[which][2][crc >> 16 & 255] ^ shift_table[which][3][crc >> 24];
}

#if defined(__clang__)
#define WITH_CRC32 __attribute__((target("crc32")))
#else
#define WITH_CRC32 __attribute__((target("sse4.2")))
#endif

WITH_CRC32 static uint32_t crc32c_fast(uint32_t before, const uint8_t *p, int64_t n) {
    uint64_t crc = (uint32_t)~before;
    for (; n >= 3 * STRIPE; p += 3 * STRIPE, n -= 3 * STRIPE) {
        uint64_t second = 0, third = 0, word;
        for (int i = 0; i < STRIPE; i += 8) {
            memcpy(&word, p + i, 8);
            crc = _mm_crc32_u64(crc, word);
            memcpy(&word, p + STRIPE + i, 8);
            second = _mm_crc32_u64(second, word);
            memcpy(&word, p + 2 * STRIPE + i, 8);
            third = _mm_crc32_u64(third, word);
        }
        crc = shifted((uint32_t)crc, 1) ^ shifted((uint32_t)second, 0) ^ (uint32_t)third;
    }
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        crc = _mm_crc32_u64(crc, word);
    }
    for (; n > 0; p++, n--) crc = _mm_crc32_u8((uint32_t)crc, *p);
    return ~(uint32_t)crc;
}
#endif

static uint32_t byte_table[8][256];

static void make_byte_tables(void) {
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t crc = value;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
        byte_table[0][value] = crc;
    }
    for (int i = 1; i < 8; i++)
        for (int value = 0; value < 256; value++) {
            uint32_t before = byte_table[i - 1][value];
            byte_table[i][value] = before >> 8 ^ byte_table[0][before & 255];
        }
}

static uint32_t crc32c_by_table(uint32_t before, const uint8_t *p, int64_t n) {
    uint32_t crc = ~before;
    for (; n >= 8; p += 8, n -= 8) {
        uint32_t low = load32(p) ^ crc, high = load32(p + 4);
        crc = byte_table[7][low & 255] ^ byte_table[6][low >> 8 & 255] ^
              byte_table[5][low >> 16 & 255] ^ byte_table[4][low >> 24] ^
              byte_table[3][high & 255] ^ byte_table[2][high >> 8 & 255] ^
              byte_table[1][high >> 16 & 255] ^ byte_table[0][high >> 24];
    }
    for (; n > 0; p++, n--) crc = crc >> 8 ^ byte_table[0][(crc ^ *p) & 255];
    return ~crc;
}

#if X86
static int has_crc;
#endif

/* Returns the crc32c of some bytes; ``before`` is that of the bytes before them. */
static uint32_t crc32c(uint32_t before, const uint8_t *p, int64_t n) {
#if X86
    if (has_crc) return crc32c_fast(before, p, n);
#endif
    return crc32c_by_table(before, p, n);
}

void store32(uint8_t *p, uint32_t value) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(value >> 8 * i);
}

uint32_t block_checksum(uint32_t voxels_crc32c, int64_t number, const uint8_t *p, int64_t n) {
    uint8_t prefix[8];
    store32(prefix, voxels_crc32c);
    store32(prefix + 4, (uint32_t)number);
    return crc32c(crc32c(0, prefix, 8), p, n);
}

/* LZ4 ---------------------------------------------------------------------------------------- */

typedef uint8_t Bytes16 __attribute__((vector_size(16), aligned(1), may_alias));

static inline void copy16(uint8_t *to, const uint8_t *from) {
    *(Bytes16 *)to = *(const Bytes16 *)from;
}

/* Copies n bytes or a few more, byte by byte in effect; the two are at least 16 bytes apart. */
static inline void copy_on(uint8_t *to, const uint8_t *from, int64_t n) {
    const uint8_t *const end = to + n;
    for (; to < end; to += 32, from += 32) {
        copy16(to, from);
        copy16(to + 16, from + 16);
    }
}

/* Reads the bytes that follow a length of 15. Returns where they end; NULL if that is past the end. */
static inline const uint8_t *longer(const uint8_t *in, const uint8_t *in_end, int64_t *length) {
    unsigned more;
    do {
        if (in >= in_end) return NULL;
        more = *in++;
        *length += more;
    } while (more == 255);
    return in;
}

/* Copies n bytes or a few more from ``offset`` bytes before, which is less than 16; the two may overlap. */
static inline void copy_near(uint8_t *out, int64_t offset, int64_t n) {
    const uint8_t *from = out - offset, *const end = out + n;
    if (offset == 1) {
        const Bytes16 same = *from - (Bytes16){0};
        for (; out < end; out += 16) *(Bytes16 *)out = same;
    } else if (offset >= 8) {
        for (; out < end; out += 8, from += 8) memcpy(out, from, 8);
    } else {
        while (out < end) *out++ = *from++;
    }
}

/* Returns a number, or 0 if a condition, 1 or 0, does not hold. Compilers make a branch of ``?:``. */
static inline int64_t if_true(int64_t condition, int64_t number) {
    int64_t mask = -condition;
    __asm__("" : "+r"(mask));
    return number & mask;
}

/* The stream that is decoded, and what is decoded of it. */
typedef struct {
    const uint8_t *in, *in_end;
    uint8_t *out, *out_start, *out_end, *enough;
} Stream;

enum { IN_AHEAD = 64, OUT_AHEAD = 128 };

/* Decodes sequences of usual lengths far from both ends, and stops before any other, even a damaged one.
 *
 * The processor cannot predict the lengths in CT data, and a wrong prediction takes longer than to
 * decode a sequence. So lengths of 15 and more are read without a branch, and more bytes are copied than
 * needed. With ``few_literals`` a stream has almost no literals of 15 bytes, so that a branch is predicted,
 * and the next sequence does not wait for their length. */
static inline __attribute__((always_inline)) void lz4_far(Stream *stream, const int few_literals) {
    const uint8_t *in = stream->in, *const in_end = stream->in_end;
    uint8_t *out = stream->out, *const out_end = stream->out_end;
    uint8_t *const enough = stream->enough;
    while (in_end - in > IN_AHEAD && out_end - out > OUT_AHEAD && out < enough) {
        const int64_t token = in[0], is_long = token >= 15 << 4;
        if (few_literals && is_long) break;
        const uint8_t *next = in + 1 + (few_literals ? 0 : is_long);
        const int64_t n_literals = (token >> 4) + (few_literals ? 0 : if_true(is_long, in[1]));
        copy16(out, next);
        if (!few_literals) {
            copy16(out + 16, next + 16);
            if (n_literals > 32) {
                if (n_literals >= 15 + 255) break;
                if (in_end - next <= IN_AHEAD + n_literals) break;
                if (out_end - out <= OUT_AHEAD + n_literals) break;
                copy_on(out + 32, next + 32, n_literals - 32);
            }
        }
        next += n_literals;
        uint8_t *const to = out + n_literals;
        const int64_t offset = next[0] | next[1] << 8, is_longer = (token & 15) == 15;
        const int64_t n = 4 + (token & 15) + if_true(is_longer, next[2]);
        next += 2 + is_longer;
        if (offset > to - stream->out_start) break;
        if (n > 64) {
            if (n >= 4 + 15 + 255 || offset < 16 || n > out_end - to) break;
            copy_on(to, to - offset, n);
        } else if (offset >= 16) {
            copy_on(to, to - offset, 32);
            if (n > 32) copy_on(to + 32, to + 32 - offset, 32);
        } else {
            if (offset == 0) break;
            copy_near(to, offset, n);
        }
        in = next;
        out = to + n;
    }
    stream->in = in;
    stream->out = out;
}

/* Decodes one sequence; returns whether it is valid. The last one of a stream has no match. */
static int lz4_sequence(Stream *stream) {
    const uint8_t *in = stream->in, *const in_end = stream->in_end;
    uint8_t *out = stream->out, *const out_end = stream->out_end;
    if (in >= in_end) return 0;
    const unsigned token = *in++;
    int64_t n = token >> 4;
    if (n == 15 && !(in = longer(in, in_end, &n))) return 0;
    if (n > in_end - in || n > out_end - out) return 0;
    memcpy(out, in, (size_t)n);
    in += n;
    out += n;
    if (in == in_end) {
        if (out != out_end) return 0;
    } else if (out < stream->enough) {
        if (in_end - in < 3) return 0; /* never the end: that is literals */
        const int64_t offset = in[0] | in[1] << 8;
        in += 2;
        n = token & 15;
        if (n == 15 && !(in = longer(in, in_end, &n))) return 0;
        n += 4;
        if (offset == 0 || offset > out - stream->out_start || n > out_end - out) return 0;
        if (offset >= 16)
            copy_on(out, out - offset, n);
        else
            copy_near(out, offset, n);
        out += n;
    }
    stream->in = in;
    stream->out = out;
    return 1;
}

int lz4(const uint8_t *in, int64_t n, uint8_t *out, int64_t size, int64_t wanted) {
    Stream stream = {in, in + n, out, out, out + size, out + wanted};
    const int few_literals = n < size / 4;
    while (stream.out < stream.enough) {
        if (few_literals)
            lz4_far(&stream, 1);
        else
            lz4_far(&stream, 0);
        if (stream.out < stream.enough && !lz4_sequence(&stream)) return 0;
    }
    return 1;
}

/* Copying ------------------------------------------------------------------------------------ */

/* Where the bytes of a block are: byte ``b`` of its voxel ``i`` is plane[b][i], or with
 * ``shuffled`` unset, plane[0][i * itemsize + b]. */
typedef struct {
    const uint8_t *plane[MAX_ITEMSIZE];
    int64_t first, count; /* voxels of the chunk that are in the block */
    int shuffled;
} Block;

static inline void pair16(uint8_t *out, const uint8_t *low, const uint8_t *high) {
#if X86
    const __m128i a = _mm_loadu_si128((const __m128i *)low);
    const __m128i b = _mm_loadu_si128((const __m128i *)high);
    _mm_storeu_si128((__m128i *)out, _mm_unpacklo_epi8(a, b));
    _mm_storeu_si128((__m128i *)(out + 16), _mm_unpackhi_epi8(a, b));
#elif defined(__aarch64__)
    const uint8x16x2_t both = {{vld1q_u8(low), vld1q_u8(high)}};
    vst2q_u8(out, both);
#else
    for (int i = 0; i < 16; i++) {
        out[2 * i] = low[i];
        out[2 * i + 1] = high[i];
    }
#endif
}

static inline void pair_row(uint8_t *out, const uint8_t *low, const uint8_t *high, int64_t n) {
    int64_t i = 0;
    for (; i <= n - 16; i += 16) pair16(out + 2 * i, low + i, high + i);
    if (i == n) return;
    if (n >= 16) {
        pair16(out + 2 * (n - 16), low + n - 16, high + n - 16);
        return;
    }
    for (; i < n; i++) {
        out[2 * i] = low[i];
        out[2 * i + 1] = high[i];
    }
}

static void copy_row(const Block *block, int64_t at, uint8_t *out, int64_t n, int64_t itemsize) {
    if (!block->shuffled) {
        memcpy(out, block->plane[0] + at * itemsize, (size_t)(n * itemsize));
    } else if (itemsize == 2) {
        pair_row(out, block->plane[0] + at, block->plane[1] + at, n);
    } else {
        for (int64_t i = 0; i < n; i++)
            for (int64_t b = 0; b < itemsize; b++) out[i * itemsize + b] = block->plane[b][at + i];
    }
}

static void copy_apart(const Block *block, int64_t at, uint8_t *out, int64_t stride, int64_t n,
                       int64_t itemsize) {
    for (int64_t i = 0; i < n; i++, out += stride)
        for (int64_t b = 0; b < itemsize; b++)
            out[b] = block->shuffled ? block->plane[b][at + i]
                                     : block->plane[0][(at + i) * itemsize + b];
}

static int64_t n_voxels(const Chunk *chunk) {
    return chunk->shape_zyx[0] * chunk->shape_zyx[1] * chunk->shape_zyx[2];
}

/* Copies a plane of shuffled int16, the most frequent case; its first voxel is ``at`` in the block. */
static void copy_pairs(const Block *block, int64_t at, int64_t row, uint8_t *out,
                       const int64_t *stride_zyx, const int64_t *shape_zyx) {
    const int64_t ny = shape_zyx[1], nx = shape_zyx[2], step = stride_zyx[1];
    const uint8_t *low = block->plane[0] + at, *high = block->plane[1] + at;
    if (nx == 1) {
        for (int64_t y = 0; y < ny; y++, out += step) {
            out[0] = low[y * row];
            out[1] = high[y * row];
        }
    } else if (stride_zyx[2] == 2) {
        for (int64_t y = 0; y < ny; y++, out += step) {
            /* Rows are too short for the processor to prefetch the next ones itself. */
            const uintptr_t ahead = (uintptr_t)out + (uintptr_t)stride_zyx[0];
            __builtin_prefetch((const void *)ahead, 1);
            __builtin_prefetch((const void *)(ahead + 2 * (uintptr_t)nx - 1), 1);
            pair_row(out, low + y * row, high + y * row, nx);
        }
    } else {
        for (int64_t y = 0; y < ny; y++, out += step)
            copy_apart(block, at + y * row, out, stride_zyx[2], nx, 2);
    }
}

static void copy_piece(const Chunk *chunk, const Block *block, const Piece *piece,
                       const Output *output) {
    const int64_t row = chunk->shape_zyx[2], plane = row * chunk->shape_zyx[1];
    const int64_t block_end = block->first + block->count;
    const int64_t *const start = piece->within_chunk_zyx, *const within = piece->within_output_zyx;
    const int64_t *const stride = output->stride_zyx, nx = piece->shape_zyx[2];
    uint8_t *const first_out =
        output->data + within[0] * stride[0] + within[1] * stride[1] + within[2] * stride[2];
    for (int64_t z = 0; z < piece->shape_zyx[0]; z++) {
        const int64_t of_plane = (start[0] + z) * plane;
        if (of_plane + plane <= block->first) continue;
        if (of_plane >= block_end) break;
        if (block->shuffled && chunk->itemsize == 2 && of_plane >= block->first &&
            of_plane + plane <= block_end) {
            copy_pairs(block, of_plane + start[1] * row + start[2] - block->first, row,
                       first_out + z * stride[0], stride, piece->shape_zyx);
            continue;
        }
        for (int64_t y = 0; y < piece->shape_zyx[1]; y++) {
            const int64_t of_row = of_plane + (start[1] + y) * row + start[2];
            int64_t from = of_row, to = of_row + nx;
            if (from < block->first) from = block->first;
            if (to > block_end) to = block_end;
            if (from >= to) continue;
            uint8_t *out = first_out + z * stride[0] + y * stride[1] + (from - of_row) * stride[2];
            if (stride[2] == chunk->itemsize)
                copy_row(block, from - block->first, out, to - from, chunk->itemsize);
            else
                copy_apart(block, from - block->first, out, stride[2], to - from, chunk->itemsize);
        }
    }
}

static void copy_pieces(const Chunk *chunk, const Call *call, Block block) {
    const Piece *const pieces = call->pieces + chunk->first_piece;
    for (int64_t i = 0; i < chunk->n_pieces; i++)
        copy_piece(chunk, &block, pieces + i, call->outputs + pieces[i].output);
}

/* Sets [*from, *to) to the voxels of the chunk, within [first, last), that the pieces need. */
static void wanted(const Chunk *chunk, const Piece *pieces, int64_t first, int64_t last,
                   int64_t *from, int64_t *to) {
    const int64_t row = chunk->shape_zyx[2], plane = row * chunk->shape_zyx[1];
    *from = last;
    *to = first;
    for (int64_t i = 0; i < chunk->n_pieces; i++) {
        const int64_t *const start = pieces[i].within_chunk_zyx, *const n = pieces[i].shape_zyx;
        int64_t z = start[0], z_end = z + n[0];
        /* Planes that lie in the block, wholly or in part. */
        if (z < first / plane) z = first / plane;
        if (z_end > (last - 1) / plane + 1) z_end = (last - 1) / plane + 1;
        if (z >= z_end) continue;
        int64_t low = z * plane + start[1] * row + start[2];
        int64_t high = (z_end - 1) * plane + (start[1] + n[1] - 1) * row + start[2] + n[2];
        if (low < first) low = first;
        if (high > last) high = last;
        if (low < *from) *from = low;
        if (high > *to) *to = high;
    }
}

/* Chunks ------------------------------------------------------------------------------------- */

/* Returns whether the offset and size of a chunk in the table are possible. */
static int has_place(const Chunk *chunk, int64_t packed_bytes) {
    return chunk->size >= MIN_BLOCK && chunk->size <= packed_bytes && chunk->offset >= 0 &&
           chunk->offset <= INT64_MAX - chunk->size;
}

/* Returns whether a chunk has at least one voxel, and no more bytes than there is room for. */
static int has_voxels(const Chunk *chunk, int64_t decoded_bytes) {
    int64_t n_bytes = chunk->itemsize;
    if (n_bytes < 1 || n_bytes > MAX_ITEMSIZE) return 0;
    for (int axis = 0; axis < 3; axis++) {
        const int64_t side = chunk->shape_zyx[axis];
        if (side < 1 || side > decoded_bytes) return 0;
        n_bytes *= side;
        if (n_bytes > decoded_bytes) return 0;
    }
    return 1;
}

/* Returns whether 0 <= start, and start + n <= side, for n > 0. */
static int is_within(int64_t start, int64_t n, int64_t side) {
    return n > 0 && start >= 0 && start <= side - n;
}

/* Returns whether a chunk has pieces, and they lie in the table, in the chunk, and in their outputs. */
static int has_pieces(const Chunk *chunk, const Call *call) {
    if (!is_within(chunk->first_piece, chunk->n_pieces, call->n_pieces)) return 0;
    for (int64_t i = 0; i < chunk->n_pieces; i++) {
        const Piece *const piece = call->pieces + chunk->first_piece + i;
        if (!is_within(piece->output, 1, call->n_outputs)) return 0;
        const Output *const output = call->outputs + piece->output;
        if (output->itemsize != chunk->itemsize) return 0;
        for (int axis = 0; axis < 3; axis++) {
            const int64_t n = piece->shape_zyx[axis];
            if (!is_within(piece->within_chunk_zyx[axis], n, chunk->shape_zyx[axis])) return 0;
            if (!is_within(piece->within_output_zyx[axis], n, output->shape_zyx[axis])) return 0;
        }
    }
    return 1;
}

/* Returns whether the blocks of a chunk lie one after the other in its bytes, are blocks of the chunk,
 * and hold all wanted voxels. */
static int has_blocks(const Chunk *chunk, const Call *call) {
    const int64_t block_bytes = chunk->block_bytes, n_bytes = n_voxels(chunk) * chunk->itemsize;
    if (block_bytes < chunk->itemsize || block_bytes > n_bytes || n_bytes % block_bytes) return 0;
    if (block_bytes % chunk->itemsize) return 0;
    if (!is_within(chunk->first_block, chunk->n_blocks, n_bytes / block_bytes)) return 0;
    if (!is_within(chunk->first_start, chunk->n_blocks + 1, call->n_starts)) return 0;
    const int64_t *const starts = call->starts + chunk->first_start;
    if (starts[0] < 0) return 0;
    for (int64_t i = 0; i < chunk->n_blocks; i++)
        if (starts[i + 1] < MIN_BLOCK || starts[i] > starts[i + 1] - MIN_BLOCK) return 0;
    if (starts[chunk->n_blocks] - starts[0] != chunk->size) return 0;
    const int64_t per_block = block_bytes / chunk->itemsize;
    int64_t from, to;
    wanted(chunk, call->pieces + chunk->first_piece, 0, n_voxels(chunk), &from, &to);
    return from / per_block >= chunk->first_block &&
           (to - 1) / per_block < chunk->first_block + chunk->n_blocks;
}

/* Decodes the ``n`` bytes of a block, up to its last wanted voxel, and copies what is wanted. */
static int decode_block(const Chunk *chunk, const Call *call, int64_t number, const uint8_t *in,
                        int64_t n) {
    const int64_t itemsize = chunk->itemsize, count = chunk->block_bytes / itemsize;
    const int shuffled = chunk->encoding == SHUFFLED_LZ4 && itemsize > 1;
    Block block = {{0}, number * count, count, shuffled};
    int64_t from, to;
    wanted(chunk, call->pieces + chunk->first_piece, block.first, block.first + count, &from, &to);
    if (from >= to) return DONE;
    n -= CHECKSUM;
    if (load32(in + n) != block_checksum(chunk->voxels_crc32c, number, in, n)) return DAMAGED;
    const int64_t last = to - block.first;
    const int64_t n_streams = count >= MIN_SPLIT_ITEMS ? itemsize : 1;
    const int64_t stream_bytes = chunk->block_bytes / n_streams;
    const uint8_t *const in_end = in + n;
    uint8_t *out = call->scratch + call->packed_bytes; /* behind what was read */
    for (int64_t stream = 0; stream < n_streams; stream++) {
        if (in_end - in < 5) return DAMAGED;
        const int64_t size = load32(in);
        in += 4;
        if (size < 1 || size > in_end - in) return DAMAGED;
        const uint8_t *decoded = out;
        if (size == stream_bytes) {
            decoded = in;
        } else {
            int64_t need = stream_bytes;
            if (shuffled)
                need = n_streams > 1 ? last : (itemsize - 1) * count + last;
            else if (n_streams == 1)
                need = last * itemsize;
            if (!lz4(in, size, out, stream_bytes, need)) return DAMAGED;
            out += stream_bytes + SLACK;
        }
        in += size;
        block.plane[stream] = decoded;
    }
    if (in != in_end) return DAMAGED;
    if (shuffled && n_streams == 1)
        for (int b = 1; b < itemsize; b++) block.plane[b] = block.plane[0] + b * count;
    if (!shuffled && n_streams > 1) { /* each stream is a part: put them side by side */
        for (int64_t stream = 0; stream < n_streams; stream++)
            memcpy(out + stream * stream_bytes, block.plane[stream], (size_t)stream_bytes);
        block.plane[0] = out;
    }
    copy_pieces(chunk, call, block);
    return DONE;
}

static int decode(const Chunk *chunk, const Call *call, const uint8_t *data) {
    const int64_t *const starts = call->starts + chunk->first_start;
    for (int64_t i = 0; i < chunk->n_blocks; i++) {
        const int status = decode_block(chunk, call, chunk->first_block + i,
                                        data + (starts[i] - starts[0]), starts[i + 1] - starts[i]);
        if (status != DONE) return status;
    }
    return DONE;
}

/* Reads a chunk if all of it is in the page cache; returns whether it was. */
static int read_at_once(const Chunk *chunk, uint8_t *out) {
#if defined(SYS_preadv2)
    /* The function preadv2 needs glibc 2.26. The system call takes the offset in two halves, of which
     * the first holds all of it on systems of 64 bits. */
    const long fd = chunk->fd, n_parts = 1, high = 0, nowait = 8;
    const struct iovec into = {out, (size_t)chunk->size};
    return syscall(SYS_preadv2, fd, &into, n_parts, (long)chunk->offset, high, nowait) == chunk->size;
#else
    (void)chunk;
    (void)out;
    return 0;
#endif
}

static int read_file(const Chunk *chunk, uint8_t *out) {
    int64_t got = 0;
    while (got < chunk->size) {
        const ssize_t n = pread(chunk->fd, out + got, (size_t)(chunk->size - got),
                                (off_t)(chunk->offset + got));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return 0;
        got += n;
    }
    return 1;
}

/* The chunks of one call that the system was not yet asked to fetch. */
typedef struct {
    const Chunk *next, *end;
} Ahead;

/* Asks the system to fetch this chunk and the next ones at once, before the first is waited for. */
static void fetch_ahead(const Chunk *chunk, Ahead *ahead, int64_t packed_bytes) {
#ifdef POSIX_FADV_WILLNEED
    const Chunk *const until = ahead->end - chunk < AT_ONCE ? ahead->end : chunk + AT_ONCE;
    if (ahead->next < chunk) ahead->next = chunk;
    while (ahead->next < until) {
        const Chunk *const first = ahead->next++;
        if (first->data || first->fd < 0 || !has_place(first, packed_bytes)) continue;
        /* Chunks that follow each other in the file are fetched as one. */
        int64_t stop = first->offset + first->size;
        for (; ahead->next < until && ahead->next->fd == first->fd && ahead->next->offset == stop &&
               has_place(ahead->next, packed_bytes);
             ahead->next++)
            stop += ahead->next->size;
        posix_fadvise(first->fd, (off_t)first->offset, (off_t)(stop - first->offset),
                      POSIX_FADV_WILLNEED);
    }
#else
    (void)chunk;
    (void)ahead;
    (void)packed_bytes;
#endif
}

static int fill(const Chunk *chunk, const Call *call, Ahead *ahead) {
    if (chunk->encoding == BACKGROUND) return chunk->size == 0 ? DONE : DAMAGED;
    if (!has_place(chunk, call->packed_bytes)) return DAMAGED;
    if (!has_voxels(chunk, call->decoded_bytes) || !has_pieces(chunk, call)) return DAMAGED;
    if (!has_blocks(chunk, call)) return DAMAGED;
    if (chunk->encoding != LZ4 && chunk->encoding != SHUFFLED_LZ4) return UNKNOWN;
    const uint8_t *data = chunk->data;
    if (!data) {
        if (!read_at_once(chunk, call->scratch)) {
            fetch_ahead(chunk, ahead, call->packed_bytes);
            if (!read_file(chunk, call->scratch)) return NOT_READ;
        }
        data = call->scratch;
    }
    return decode(chunk, call, data);
}

/* Interface ---------------------------------------------------------------------------------- */

/* Must be called once, before anything else. */
EXPORT int32_t spinezarr_kernel_version(void) {
    make_byte_tables();
#if X86
    has_crc = processor_has_sse42();
    make_shift_tables();
#endif
    return VERSION;
}

/* Bytes of a row of each table, so that the caller can check that its structures are the same. */
EXPORT int64_t spinezarr_chunk_bytes(void) { return (int64_t)sizeof(Chunk); }
EXPORT int64_t spinezarr_piece_bytes(void) { return (int64_t)sizeof(Piece); }
EXPORT int64_t spinezarr_output_bytes(void) { return (int64_t)sizeof(Output); }

/* Bytes of encoded blocks of a chunk that decodes to ``decoded_bytes``, at most: each voxel may be a
 * block with a stream for each of its bytes. */
static int64_t packed_bytes(int64_t decoded_bytes, int64_t max_blocks) {
    return decoded_bytes + max_blocks * (4 * MAX_ITEMSIZE + CHECKSUM);
}

/* Bytes of ``scratch`` that spinezarr_fill needs for chunks that decode to at most ``decoded_bytes``, in
 * at most ``max_blocks`` blocks; -1 if such chunks are larger than it decodes. */
EXPORT int64_t spinezarr_scratch_bytes(int64_t decoded_bytes, int64_t max_blocks) {
    if (decoded_bytes < 0 || decoded_bytes > MAX_CHUNK_BYTES) return -1;
    if (max_blocks < 0 || max_blocks > MAX_CHUNK_BYTES) return -1;
    /* Encoded; the streams of a block, each with slack; the same side by side. */
    return packed_bytes(decoded_bytes, max_blocks) + decoded_bytes + MAX_ITEMSIZE * SLACK +
           decoded_bytes;
}

/* Fills the pieces of chunks[first:last], and sets the status of each of these. A chunk that
 * decodes to more than ``decoded_bytes``, or has more encoded bytes than such a chunk of
 * ``max_blocks`` blocks can have, is DAMAGED. */
EXPORT void spinezarr_fill(Chunk *chunks, int64_t first, int64_t last, const Piece *pieces,
                           int64_t n_pieces, const Output *outputs, int64_t n_outputs,
                           const int64_t *starts, int64_t n_starts, uint8_t *scratch,
                           int64_t decoded_bytes, int64_t max_blocks) {
    if (decoded_bytes > MAX_CHUNK_BYTES) decoded_bytes = MAX_CHUNK_BYTES;
    if (max_blocks > MAX_CHUNK_BYTES) max_blocks = MAX_CHUNK_BYTES;
    if (max_blocks < 0) max_blocks = 0;
    const Call call = {pieces,  n_pieces, outputs, n_outputs,
                       starts,  n_starts, scratch, packed_bytes(decoded_bytes, max_blocks),
                       decoded_bytes};
    Ahead ahead = {chunks + first, chunks + last};
    for (int64_t i = first; i < last; i++) chunks[i].status = fill(chunks + i, &call, &ahead);
}

/* For tests: crc32c by the instruction, if the machine has it, and by the table. */
EXPORT uint32_t spinezarr_crc32c(const uint8_t *data, int64_t n, int32_t by_table) {
    return by_table ? crc32c_by_table(0, data, n) : crc32c(0, data, n);
}
