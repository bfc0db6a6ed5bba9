/* What the other files with C code use of the kernel. */
#ifndef SPINEZARR_KERNEL_H
#define SPINEZARR_KERNEL_H

#include "tables.h"

enum { SLACK = 128, CHECKSUM = 4 };

void store32(uint8_t *p, uint32_t value);

/* Returns the checksum of a block: of the checksum of the chunk's voxels, its number, its bytes.
 * spinezarr_kernel_version must have been called. */
uint32_t block_checksum(uint32_t voxels_crc32c, int64_t number, const uint8_t *p, int64_t n);

/* Decodes at least the first ``wanted`` of ``size`` bytes. ``out`` has SLACK more bytes after ``size``.
 * Returns whether everything that was read is valid. */
int lz4(const uint8_t *in, int64_t n, uint8_t *out, int64_t size, int64_t wanted);

#endif
