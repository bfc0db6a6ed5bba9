/* Compresses the blocks of a chunk into LZ4 streams, without Python.
 *
 * Any LZ4 decoder reads these streams. A stream is a sequence of literals and matches, and the encoder
 * chooses the matches that give the fewest bytes: it goes through the bytes backward, and knows at each
 * byte what the rest costs. Matches are found as LZ4HC finds them, by hash chains, with three differences:
 *
 * - Chains are for streams of at most 32 KiB, so their tables stay in the cache of the processor.
 * - A byte is not searched where the match of the next byte begins one byte earlier too. That one is the
 *   longest match there as well.
 * - Most bytes of CT and masks lie in runs of equal bytes. Within a run nothing is searched. The byte before
 *   a run has a second chain, of bytes before a run of the same length. These matches go on beyond the run.
 *
 * Sources: LZ4 block format (lz4_Block_format.md of LZ4), with its rules for the end of a stream;
 * docs/reference/store-format.md for blocks.
 *
 * Addresses and sizes are trusted. Each stream is decoded again and compared before it is returned.
 */
#include "../stream/read/kernel.h"

#include <stddef.h>
#include <string.h>

enum { MAX_STREAM = 1 << 15 };
enum { MIN_MATCH = 4, LITERALS_AT_END = 5, MATCH_FROM_END = 12 };
enum { HASHED_BYTES = 5, HASH_BITS = 14, RUN_HASH_BITS = 10, PROBE_HASH_BITS = 12 };
enum { NONE = 0xFFFF };
/* A byte counts two, and a sequence of literals and a match one more, as it takes time to decode. */
enum { BYTE_COST = 2, SEQUENCE_COST = 3 * BYTE_COST + 1 };
enum { SHORTER_ENDS = 1 };           /* a match may end so many bytes earlier, if the rest costs less then */
enum { NOISE_SHARE = 100 };          /* noise: what saves less than this part of the bytes */
enum { PROBE_PATIENCE = 6 };         /* 2^6 bytes without a match, and the probe takes longer steps */
enum { MOST_LITERALS_OF_TOKEN = 14, LONGEST_OF_TOKEN = 18 };

/* A stretch of bytes for which one choice is the best: literals up to ``end``, or a match up to there. */
typedef struct {
    uint32_t cost; /* of all from ``end`` on, and of the match without the bytes of its length */
    uint16_t end;
    uint16_t offset; /* of the match; 0 for literals */
} Choice;

/* The memory of a call. Chains end with NONE. */
typedef struct {
    uint16_t head[1 << HASH_BITS], previous[MAX_STREAM];
    uint16_t head_of_runs[1 << RUN_HASH_BITS], previous_of_runs[MAX_STREAM];
    uint16_t choice_of_byte[MAX_STREAM + 1];
    Choice choices[MAX_STREAM + 1];
    uint8_t packed[MAX_STREAM + MAX_STREAM / 255 + 64];
    uint8_t unpacked[MAX_STREAM + SLACK];
    uint8_t streams[MAX_STREAM * 2]; /* shuffled bytes of a block */
} Scratch;

typedef struct {
    int length, offset;
} Match;

static inline uint32_t word(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static inline uint64_t long_word(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static inline int is_run(uint32_t value) { return value == (value >> 8 | value << 24); }

/* Multiplicative hashing with 2^n divided by the golden ratio (Knuth, volume 3, 6.4). */
static inline uint32_t hash_of(const uint8_t *p) {
    return (uint32_t)((long_word(p) << (64 - 8 * HASHED_BYTES)) * 0x9E3779B97F4A7C15u >> (64 - HASH_BITS));
}

static inline uint32_t hash_of_run(uint32_t byte_before, uint32_t byte, uint32_t length) {
    return (byte_before | byte << 8 | length << 16) * 2654435761u >> (32 - RUN_HASH_BITS);
}

/* Returns how many bytes from ``a`` and from ``b`` on are equal; ``b`` ends at ``end``. */
static inline int n_equal(const uint8_t *a, const uint8_t *b, const uint8_t *end) {
    const uint8_t *const start = b;
    for (; end - b >= 8; a += 8, b += 8) {
        const uint64_t differing = long_word(a) ^ long_word(b);
        if (differing) return (int)(b - start) + (__builtin_ctzll(differing) >> 3);
    }
    for (; b < end && *a == *b; a++, b++) {}
    return (int)(b - start);
}

/* Returns how many bytes before ``a`` and before ``b`` are equal, at most ``limit``. */
static inline int n_equal_before(const uint8_t *a, const uint8_t *b, int limit) {
    int n = 0;
    for (; n + 8 <= limit; n += 8) {
        const uint64_t differing = long_word(a - n - 8) ^ long_word(b - n - 8);
        if (differing) return n + (__builtin_clzll(differing) >> 3);
    }
    while (n < limit && a[-n - 1] == b[-n - 1]) n++;
    return n;
}

/* Returns whether a quick look finds too few matches for a stream to become smaller. Steps become longer
 * where nothing is found, as in LZ4. */
static int is_noise(const uint8_t *in, int n, Scratch *scratch) {
    uint16_t *const head = scratch->head;
    memset(head, 0xFF, sizeof(uint16_t) << PROBE_HASH_BITS);
    int saved = 0, missed = 0;
    for (int at = 0; at <= n - MATCH_FROM_END;) {
        const uint32_t value = word(in + at), hash = value * 2654435761u >> (32 - PROBE_HASH_BITS);
        const int before = head[hash];
        head[hash] = (uint16_t)at;
        if (before != NONE && word(in + before) == value) {
            const int length = 4 + n_equal(in + before + 4, in + at + 4, in + n - LITERALS_AT_END);
            saved += length - 3;
            if (saved * NOISE_SHARE > n) return 0;
            at += length;
            missed = 0;
        } else {
            at += 1 + (missed++ >> PROBE_PATIENCE);
        }
    }
    return 1;
}

/* Fills the chains with all bytes at which a match may start, except those within runs. */
static void fill_chains(const uint8_t *in, int n, Scratch *scratch) {
    const int last = n - MATCH_FROM_END;
    memset(scratch->head, 0xFF, sizeof scratch->head);
    memset(scratch->head_of_runs, 0xFF, sizeof scratch->head_of_runs);
    int start = 0; /* of the run that this byte belongs to */
    for (int at = 0; at <= last; at++) {
        if (at > 0 && in[at] != in[at - 1]) {
            if (at - start >= MIN_MATCH && start > 0) {
                const int before = start - 1;
                const uint32_t hash = hash_of_run(in[before], in[start], (uint32_t)(at - start));
                scratch->previous_of_runs[before] = scratch->head_of_runs[hash];
                scratch->head_of_runs[hash] = (uint16_t)before;
            }
            start = at;
        }
        if (is_run(word(in + at))) {
            at += n_equal(in + at, in + at + 1, in + n) + 1 - (MIN_MATCH - 1);
            if (at > last) return;
        }
        const uint32_t hash = hash_of(in + at);
        scratch->previous[at] = scratch->head[hash];
        scratch->head[hash] = (uint16_t)at;
        scratch->previous_of_runs[at] = NONE;
    }
}

/* Looks along a chain for a longer match at ``at`` than ``best``. */
static inline __attribute__((always_inline)) Match search(const uint8_t *in, int n, int at,
                                                          const uint16_t *previous, int n_tries, Match best) {
    const uint8_t *const end = in + n - LITERALS_AT_END;
    const uint32_t value = word(in + at);
    for (int from = previous[at]; from != NONE && n_tries > 0; from = previous[from], n_tries--) {
        if (best.length == end - (in + at)) break;
        const int tail = best.length - 3;
        if (word(in + from + tail) != word(in + at + tail) || word(in + from) != value) continue;
        const int length = 4 + n_equal(in + from + 4, in + at + 4, end);
        if (length > best.length) best = (Match){length, at - from};
    }
    return best;
}

static inline uint32_t bytes_of_match_length(uint32_t length) { /* after the token */
    return (length + 255 - LONGEST_OF_TOKEN - 1) / 255;
}

static inline uint32_t bytes_of_literals(uint32_t n) {
    return n + (n + 255 - MOST_LITERALS_OF_TOKEN - 1) / 255;
}

/* Returns the cost of all from ``at`` on with a choice. */
static inline uint32_t cost_with(Choice choice, int at) {
    const uint32_t n = choice.end - (uint32_t)at;
    return choice.cost + BYTE_COST * (choice.offset ? bytes_of_match_length(n) : bytes_of_literals(n));
}

static inline uint32_t cost_from(const Scratch *scratch, int at) {
    return cost_with(scratch->choices[scratch->choice_of_byte[at]], at);
}

/* Returns the best choice that takes a match: all of it, or a part. */
static Choice taken(const Scratch *scratch, int at, Match match) {
    Choice best = {UINT32_MAX, 0, 0};
    uint32_t least = UINT32_MAX;
    const int shortest = match.length > MIN_MATCH + SHORTER_ENDS ? match.length - SHORTER_ENDS : MIN_MATCH;
    for (int length = match.length; length >= MIN_MATCH; length--) {
        if (length < shortest) { /* one more: the longest whose length fits into the token */
            if (length < LONGEST_OF_TOKEN) break;
            length = LONGEST_OF_TOKEN;
        }
        const uint32_t rest = cost_from(scratch, at + length) + SEQUENCE_COST;
        const Choice choice = {rest, (uint16_t)(at + length), (uint16_t)match.offset};
        const uint32_t cost = cost_with(choice, at);
        if (cost < least) least = cost, best = choice;
    }
    return best;
}

/* Chooses literals or a match for each byte, from the last to the first. */
static void choose(const uint8_t *in, int n, int n_tries, Scratch *scratch) {
    const uint8_t *const end = in + n - LITERALS_AT_END;
    const int last = n - MATCH_FROM_END;
    int n_choices = 1;
    scratch->choices[0] = (Choice){0, (uint16_t)n, 0};
    for (int at = last + 1; at <= n; at++) scratch->choice_of_byte[at] = 0;
    Match match = {0, 0};
    for (int at = last; at >= 0; at--) {
        if (match.length == 0 && is_run(word(in + at))) {
            if (at > 0 && in[at] == in[at - 1])
                match = (Match){4 + n_equal(in + at + 3, in + at + 4, end), 1};
        } else if (match.length == 0) {
            Match best = {MIN_MATCH - 1, 0};
            if (is_run(word(in + at + 1)))
                best = search(in, n, at, scratch->previous_of_runs, 2 * n_tries, best);
            best = search(in, n, at, scratch->previous, n_tries, best);
            if (best.offset) match = best;
        }
        const Choice after = scratch->choices[n_choices - 1];
        const Choice literal =
            after.offset ? (Choice){cost_with(after, at + 1), (uint16_t)(at + 1), 0} : after;
        if (match.length) {
            const Choice choice = taken(scratch, at, match);
            if (cost_with(choice, at) <= cost_with(literal, at)) {
                /* The same match is the best one for all bytes before this one that belong to it. */
                const int first = at - n_equal_before(in + at, in + at - match.offset, at - match.offset);
                scratch->choices[n_choices] = choice;
                for (; at > first; at--) scratch->choice_of_byte[at] = (uint16_t)n_choices;
                scratch->choice_of_byte[at] = (uint16_t)n_choices++;
                match.length = 0;
                continue;
            }
            const int goes_on = at > match.offset && in[at - 1] == in[at - 1 - match.offset];
            match.length = goes_on ? match.length + 1 : 0;
        }
        if (after.offset) scratch->choices[n_choices++] = literal;
        scratch->choice_of_byte[at] = (uint16_t)(n_choices - 1);
    }
}

static uint8_t *put_length(uint8_t *out, int length) { /* what the token does not hold of it */
    for (; length >= 255; length -= 255) *out++ = 255;
    *out++ = (uint8_t)length;
    return out;
}

/* Writes the sequences that were chosen; returns their size. */
static int write_chosen(const uint8_t *in, int n, Scratch *scratch) {
    uint8_t *out = scratch->packed;
    for (int at = 0; at < n;) {
        Choice choice = scratch->choices[scratch->choice_of_byte[at]];
        const uint8_t *const literals = in + at;
        int n_literals = 0;
        if (!choice.offset) {
            n_literals = choice.end - at;
            at = choice.end;
            choice = scratch->choices[scratch->choice_of_byte[at]];
        }
        uint8_t *const token = out++;
        *token = (uint8_t)((n_literals < 15 ? n_literals : 15) << 4);
        if (n_literals >= 15) out = put_length(out, n_literals - 15);
        memcpy(out, literals, (size_t)n_literals);
        out += n_literals;
        if (at == n) break;
        const int length = choice.end - at - MIN_MATCH;
        *out++ = (uint8_t)choice.offset;
        *out++ = (uint8_t)(choice.offset >> 8);
        *token |= (uint8_t)(length < 15 ? length : 15);
        if (length >= 15) out = put_length(out, length - 15);
        at = choice.end;
    }
    return (int)(out - scratch->packed);
}

/* Writes a stream with its size before it, compressed if that makes it smaller. Returns its end; NULL if
 * it does not decode to what it should. */
static uint8_t *put_stream(uint8_t *out, const uint8_t *in, int n, int n_tries, Scratch *scratch) {
    int size = n;
    if (n > MATCH_FROM_END && !is_noise(in, n, scratch)) {
        fill_chains(in, n, scratch);
        choose(in, n, n_tries, scratch);
        size = write_chosen(in, n, scratch);
    }
    if (size >= n) {
        store32(out, (uint32_t)n);
        memcpy(out + 4, in, (size_t)n);
        return out + 4 + n;
    }
    if (!lz4(scratch->packed, size, scratch->unpacked, n, n)) return NULL;
    if (memcmp(scratch->unpacked, in, (size_t)n)) return NULL;
    store32(out, (uint32_t)size);
    memcpy(out + 4, scratch->packed, (size_t)size);
    return out + 4 + size;
}

/* Puts the bytes of the voxels of a block side by side: all first bytes, then all second bytes. */
static void shuffle(const uint8_t *block, int n_voxels, int itemsize, uint8_t *to) {
    if (itemsize == 2) {
        for (int i = 0; i < n_voxels; i++) to[i] = block[2 * i];
        for (int i = 0; i < n_voxels; i++) to[n_voxels + i] = block[2 * i + 1];
        return;
    }
    for (int byte = 0; byte < itemsize; byte++)
        for (int i = 0; i < n_voxels; i++) to[byte * n_voxels + i] = block[i * itemsize + byte];
}

/* Bytes of ``scratch`` that spinezarr_encode_lz4 needs. */
EXPORT int64_t spinezarr_lz4_scratch_bytes(void) { return (int64_t)sizeof(Scratch); }

/* Encodes the blocks of a chunk one after the other, each with its checksum; returns their size.
 *
 * It returns -1 if its streams are too large, or one did not decode again. ``out`` has room for blocks
 * that are not compressed, and ``block_sizes`` gets the size of each. ``n_tries`` is how many bytes of a
 * chain are tried. */
EXPORT int64_t spinezarr_encode_lz4(const uint8_t *voxels, int64_t n_blocks, int64_t block_bytes,
                                    int64_t n_streams, int64_t shuffled_itemsize, uint32_t voxels_crc32c,
                                    int32_t n_tries, uint8_t *out, uint32_t *block_sizes,
                                    uint8_t *scratch_bytes) {
    Scratch *const scratch = (Scratch *)scratch_bytes;
    if (block_bytes / n_streams > MAX_STREAM) return -1;
    if (shuffled_itemsize > 1 && block_bytes > (int64_t)sizeof scratch->streams) return -1;
    const int stream_bytes = (int)(block_bytes / n_streams);
    uint8_t *const start = out;
    for (int64_t number = 0; number < n_blocks; number++) {
        const uint8_t *streams = voxels + number * block_bytes;
        uint8_t *const block = out;
        if (shuffled_itemsize > 1) {
            shuffle(streams, (int)(block_bytes / shuffled_itemsize), (int)shuffled_itemsize, scratch->streams);
            streams = scratch->streams;
        }
        for (int64_t i = 0; i < n_streams; i++) {
            out = put_stream(out, streams + i * stream_bytes, stream_bytes, n_tries, scratch);
            if (!out) return -1;
        }
        store32(out, block_checksum(voxels_crc32c, number, block, out - block));
        out += CHECKSUM;
        block_sizes[number] = (uint32_t)(out - block);
    }
    return out - start;
}
