/* Copies a box of voxels whose rows lie in memory forward or backward, without Python.
 *
 * An axis that points the other way than in the store has a negative stride, and NumPy copies such rows
 * voxel by voxel. This code copies eight bytes at once, and asks for the memory of the next plane.
 *
 * Addresses, shapes and strides are trusted: the caller takes them from two arrays of one shape.
 */
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { WORD = 8 };

/* Reverses the voxels in a word. */
static inline uint64_t reversed(uint64_t word, const int64_t itemsize) {
    const uint64_t odd = 0x0000FFFF0000FFFF;
    if (itemsize == 1) return __builtin_bswap64(word);
    word = word >> 32 | word << 32;
    return itemsize == 4 ? word : (word >> 16 & odd) | (word & odd) << 16;
}

/* Copies ``n`` voxels that lie backward: the first at ``from``, the others before it. */
static inline __attribute__((always_inline)) void copy_back(uint8_t *to, const uint8_t *from, int64_t n,
                                                            const int64_t itemsize) {
    const int64_t per_word = WORD / itemsize;
    int64_t i = 0;
    for (; i + per_word <= n; i += per_word) {
        uint64_t word;
        memcpy(&word, from - (i + per_word - 1) * itemsize, WORD);
        word = reversed(word, itemsize);
        memcpy(to + i * itemsize, &word, WORD);
    }
    for (; i < n; i++) memcpy(to + i * itemsize, from - i * itemsize, (size_t)itemsize);
}

static void copy_row(uint8_t *to, const uint8_t *from, int64_t n, int64_t itemsize, int is_forward) {
    if (is_forward)
        memcpy(to, from, (size_t)(n * itemsize));
    else if (itemsize == 1)
        copy_back(to, from, n, 1);
    else if (itemsize == 2)
        copy_back(to, from, n, 2);
    else
        copy_back(to, from, n, 4);
}

/* Copies a box of voxels of 1, 2 or 4 bytes. Strides are in bytes; those along x are the size of a voxel
 * in ``to``, and the same or its negative in ``from``. */
EXPORT void spinezarr_gather(uint8_t *to, const int64_t *to_strides_zyx, const uint8_t *from,
                             const int64_t *from_strides_zyx, const int64_t *shape_zyx,
                             int64_t itemsize) {
    const int is_forward = from_strides_zyx[2] > 0;
    for (int64_t z = 0; z < shape_zyx[0]; z++)
        for (int64_t y = 0; y < shape_zyx[1]; y++) {
            const uint8_t *const row = from + z * from_strides_zyx[0] + y * from_strides_zyx[1];
            /* Rows are too short for the processor to prefetch the next ones itself. */
            const uintptr_t ahead = (uintptr_t)row + (uintptr_t)from_strides_zyx[0];
            __builtin_prefetch((const void *)ahead);
            __builtin_prefetch((const void *)(ahead + (uintptr_t)(shape_zyx[2] * from_strides_zyx[2])));
            copy_row(to + z * to_strides_zyx[0] + y * to_strides_zyx[1], row, shape_zyx[2], itemsize,
                     is_forward);
        }
}
