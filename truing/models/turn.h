/* A transposition for the C files beside it, by AVX-512. */
#include <immintrin.h>

/* Transpose 16 rows of 16. */
static inline void turn(__m512 row[16]) {
    __m512i t[16], *r = (__m512i *)row;
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) for (int j = 0; j < 2; j++) {
        r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
        r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
    for (int i = 0; i < 16; i += 8) for (int j = 0; j < 4; j++) {
        t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
        t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}
