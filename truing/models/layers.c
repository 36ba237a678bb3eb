/* What lies between the matrix products of a training pass, on a CPU, in float32 or (HALF) bfloat16:
 * each forward and backward pass goes over its memory once, and computes in float32. */
#include "native.h"

#ifdef HALF
typedef uint16_t number;

static inline float wide(number x) {
    union { uint32_t i; float f; } bits = {(uint32_t)x << 16};
    return bits.f;
}

/* To the nearest, to the even one of two that are as near. NaN stays NaN. */
static inline number narrow(float x) {
    union { float f; uint32_t i; } bits = {x};
    const uint32_t rounded = (bits.i + 0x7fff + ((bits.i >> 16) & 1)) >> 16;
    return x != x ? 0x7fc0 : (number)rounded;
}
#else
typedef float number;

static inline float wide(number x) { return x; }
static inline number narrow(float x) { return x; }
#endif

/* out = x * scale * weight with scale = 1 / sqrt(mean(x^2) + epsilon), for each row (rows, width);
 * scale (rows) is kept for the way back. */
void norm(number *out, float *scale, const number *x, const number *weight, double epsilon,
          int64_t rows, int64_t width, int64_t threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        const number *from = x + i * width;
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) sum += wide(from[j]) * wide(from[j]);
        const float by = scale[i] = 1.0f / sqrtf(sum / width + (float)epsilon);
        /* Rounded between the two products, as the family does. */
        for (int64_t j = 0; j < width; j++)
            out[i * width + j] = narrow(wide(narrow(wide(from[j]) * by)) * wide(weight[j]));
    }
}

/* Gradients of x (rows, width) and, a part for each thread, of the weight (threads, width), which
 * must come as zeros. */
void norm_back(number *into, float *of_weight, const number *ahead, const float *scale, const number *x,
               const number *weight, int64_t rows, int64_t width, int64_t threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t part = 0; part < threads; part++)
    for (int64_t i = part * rows / threads; i < (part + 1) * rows / threads; i++) {
        const number *from = x + i * width, *slope = ahead + i * width;
        float *total = of_weight + part * width, along = 0;
        const float by = scale[i];
        #pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < width; j++) {
            const float each = wide(slope[j]) * wide(from[j]);
            total[j] += each * by;
            along += each * wide(weight[j]);
        }
        const float pull = along * by * by * by / width;
        for (int64_t j = 0; j < width; j++)
            into[i * width + j] = narrow(wide(slope[j]) * wide(weight[j]) * by
                                         - wide(from[j]) * pull);
    }
}

/* out = silu(gate) * up, number by number. */
void gate(number *out, const number *gate, const number *up, int64_t count, int64_t threads) {
    #pragma omp parallel for simd num_threads(threads) if (parallel : threads > 1)
    for (int64_t i = 0; i < count; i++) {
        const float x = wide(gate[i]);
        out[i] = narrow(wide(narrow(x * sigmoid(x))) * wide(up[i]));
    }
}

/* And, unless it is none, the output ``again``. */
void gate_back(number *of_gate, number *of_up, number *again, const number *ahead,
               const number *gate, const number *up, int64_t count, int64_t threads) {
    #pragma omp parallel for simd num_threads(threads) if (parallel : threads > 1)
    for (int64_t i = 0; i < count; i++) {
        const float x = wide(gate[i]), open = sigmoid(x), slope = wide(ahead[i]);
        of_up[i] = narrow(slope * x * open);
        of_gate[i] = narrow(slope * wide(up[i]) * open * (1.0f + x * (1.0f - open)));
        if (again)
            again[i] = narrow(wide(narrow(x * open)) * wide(up[i]));
    }
}

/* Rotary positions of x (rows, heads, 2 half): each pair (d, d + half) of a head turned by its angle,
 * whose cosines and sines are (rows, 2 half); with ``back`` by the transposed matrix. */
void rotate(number *out, const number *x, const number *cosine, const number *sine, int64_t rows,
            int64_t heads, int64_t half, int64_t back, int64_t threads) {
    const float sign = back ? -1.0f : 1.0f;
    const int64_t one = back ? half : 0, other = back ? 0 : half;
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        const number *turn = cosine + i * 2 * half, *side = sine + i * 2 * half;
        for (int64_t h = 0; h < heads; h++) {
            const number *from = x + (i * heads + h) * 2 * half;
            number *to = out + (i * heads + h) * 2 * half;
            for (int64_t d = 0; d < half; d++) {
                const float a = wide(from[d]), b = wide(from[d + half]);
                to[d] = narrow(a * wide(turn[d]) - sign * b * wide(side[d + one]));
                to[d + half] = narrow(b * wide(turn[d + half]) + sign * a * wide(side[d + other]));
            }
        }
    }
}
