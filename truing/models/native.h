/* Numbers for the C files beside it and elsewhere, in float32. */
#include <math.h>
#include <stdint.h>

/* exp(x) for x <= 0, to float32 precision: 2^k times a polynomial on half a step around zero. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float k = floorf(x * 1.44269504f + 0.5f);
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (1.6666667e-1f + r * (4.1666667e-2f
              + r * (8.3333333e-3f + r * 1.3888889e-3f)))));
    union { int32_t i; float f; } power = {((int32_t)k + 127) << 23};
    return p * power.f;
}

/* 1 / (1 + exp(-x)). */
static inline float sigmoid(float x) {
    const float below = -fabsf(x), e = below < -87.0f ? 0.0f : exponential(below);
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

#ifdef __AVX512F__
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
#endif
