/* Encodes made-up chunks as LZ4 streams: lz4_encoder_driver FIRST COUNT.
 *
 * It is compiled together with the encoder, under sanitizers. Each buffer is an allocation of just its
 * size. The streams are decoded byte by byte, and must end as LZ4 demands (lz4_Block_format.md of LZ4).
 *
 * Cases are numbered; case n is the same wherever it runs. A failure names it.
 */
#include "kernel.c"

#include "../../store/lz4_encoder.c"

#include "driver.h"

enum { MOST_BYTES = 3000, MOST_TRIES = 64 };
enum { LEAST_LITERALS_AT_END = 5, LAST_MATCH_FROM_END = 12, LARGEST_STREAM = 32768 };

/* Fills a stream with runs, noise, and bytes that came before. */
static void make_stream(uint8_t *out, int64_t n) {
    const int64_t n_values = 1 + below(below(2) ? 4 : 256), longest = 1 + below(below(2) ? 12 : 700);
    const int64_t kind = below(8);
    for (int64_t at = 0; at < n;) {
        int64_t length = 1 + below(longest);
        if (length > n - at) length = n - at;
        const int64_t offset = at ? 1 + below(at) : 0, value = below(n_values);
        const int is_copy = at > 0 && kind != 0 && below(3) == 0;
        const int is_run = kind != 1 && below(2) == 0;
        for (; length > 0; length--, at++)
            out[at] = (uint8_t)(is_copy ? out[at - offset] : is_run ? value : below(n_values));
    }
}

/* Returns the number of matches of a stream, which must decode to ``expected``. */
static int64_t check_stream(const uint8_t *in, int64_t n_in, const uint8_t *expected, int64_t n) {
    int64_t at = 0, to = 0, n_matches = 0;
    for (;;) {
        require(at < n_in, "no token");
        const int token = in[at++];
        int64_t length = token >> 4;
        for (int more = 255 * (length == 15); more == 255; length += more) {
            require(at < n_in, "no length of literals");
            more = in[at++];
        }
        require(length <= n_in - at && length <= n - to, "too many literals");
        require(!memcmp(in + at, expected + to, (size_t)length), "other literals");
        at += length, to += length;
        if (at == n_in) {
            require(to == n && (length >= LEAST_LITERALS_AT_END || !n_matches), "another end");
            return n_matches;
        }
        require(n_in - at >= 2, "no offset");
        const int64_t offset = in[at] | in[at + 1] << 8;
        at += 2;
        length = token & 15;
        for (int more = 255 * (length == 15); more == 255; length += more) {
            require(at < n_in, "no length of a match");
            more = in[at++];
        }
        length += 4;
        require(offset > 0 && offset <= to && to <= n - LAST_MATCH_FROM_END, "another place of a match");
        for (; length > 0; length--, to++)
            require(to < n && expected[to] == expected[to - offset], "another match");
        n_matches++;
    }
}

/* Returns the number of matches. */
static int64_t run_case(void) {
    const int64_t itemsize = (const int64_t[]){1, 1, 2, 2, 4, 8}[below(6)];
    const int64_t n_blocks = 1 + below(3), n_streams = below(6) ? itemsize : 1;
    const int is_shuffled = below(4) > 0;
    int64_t n_voxels = below(4) ? 1 + below(MOST_BYTES) : 1 + below(40);
    if (below(40) == 0) n_voxels = LARGEST_STREAM / (n_streams == 1 ? itemsize : 1) + 1 - below(3);
    const int64_t block_bytes = n_voxels * itemsize, stream_bytes = block_bytes / n_streams;
    const int64_t n_bytes = n_blocks * block_bytes;
    uint8_t *const voxels = exactly(n_bytes), *const streams = exactly(n_bytes);
    for (int64_t i = 0; i < n_blocks * n_streams; i++) make_stream(streams + i * stream_bytes, stream_bytes);
    for (int64_t block = 0; block < n_blocks; block++)
        for (int64_t i = 0; i < block_bytes; i++) {
            const int64_t from = is_shuffled ? i % itemsize * n_voxels + i / itemsize : i;
            voxels[block * block_bytes + i] = streams[block * block_bytes + from];
        }
    uint8_t *const out = exactly(n_bytes + n_blocks * (4 * n_streams + CHECKSUM));
    uint32_t *const sizes = exactly(n_blocks * 4);
    uint8_t *const scratch = exactly(spinezarr_lz4_scratch_bytes());
    memset(scratch, (int)below(256), sizeof(Scratch));
    const uint32_t voxels_crc32c = (uint32_t)draw();
    const int64_t size =
        spinezarr_encode_lz4(voxels, n_blocks, block_bytes, n_streams, is_shuffled ? itemsize : 1,
                             voxels_crc32c, (int32_t)(1 + below(MOST_TRIES)), out, sizes, scratch);
    int64_t at = 0, n_matches = 0;
    if (size < 0) {
        require(stream_bytes > LARGEST_STREAM || block_bytes > 2 * LARGEST_STREAM, "refused");
    } else {
        for (int64_t block = 0; block < n_blocks; block++) {
            const int64_t start = at;
            for (int64_t i = 0; i < n_streams; i++) {
                const uint8_t *const expected = streams + block * block_bytes + i * stream_bytes;
                const int64_t n = load32(out + at);
                at += 4;
                require(n > 0 && n <= stream_bytes && n <= size - at, "another size");
                if (n == stream_bytes)
                    require(!memcmp(out + at, expected, (size_t)n), "other bytes");
                else
                    n_matches += check_stream(out + at, n, expected, stream_bytes);
                at += n;
            }
            require(load32(out + at) == block_checksum(voxels_crc32c, block, out + start, at - start),
                    "another checksum");
            at += CHECKSUM;
            require(sizes[block] == at - start, "another size of a block");
        }
        require(at == size, "another size of all blocks");
    }
    free(voxels), free(streams), free(out), free(sizes), free(scratch);
    return n_matches;
}

int main(int argc, char **argv) {
    require(argc == 3, "lz4_encoder_driver FIRST COUNT");
    const int64_t first = atoll(argv[1]), count = atoll(argv[2]);
    signal(SIGABRT, aborted);
    spinezarr_kernel_version();
    int64_t n_matches = 0;
    for (int64_t i = first; i < first + count; i++) {
        start_case(i);
        n_matches += run_case();
    }
    printf("%lld cases of encoding: %lld matches\n", (long long)count, (long long)n_matches);
    return 0;
}
