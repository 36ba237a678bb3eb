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
