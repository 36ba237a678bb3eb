/* What lies between the matrix products of a decode step, on a CPU in float32, each as one call:
 * the norm, the gate, and attention for one new token a row. DIM, the size of a head, is a
 * constant. */
#include <string.h>

#include "native.h"

/* out = x / sqrt(mean(x^2) + epsilon) * weight. */
static inline void normed(float *out, const float *x, const float *weight, float epsilon,
                          int64_t width) {
    float sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; j++) sum += x[j] * x[j];
    const float scale = 1.0f / sqrtf(sum / width + epsilon);
    for (int64_t j = 0; j < width; j++) out[j] = x[j] * scale * weight[j];
}

/* The same for each row of x (rows, width). */
void norm(float *out, const float *x, const float *weight, double epsilon,
          int64_t rows, int64_t width, int64_t threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++)
        normed(out + i * width, x + i * width, weight, epsilon, width);
}

/* out = silu(gate) * up, for each row of x: gate and up (rows, 2 * width). */
void gate(float *out, const float *x, int64_t rows, int64_t width, int64_t threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        const float *from = x + 2 * i * width;
        for (int64_t j = 0; j < width; j++)
            out[i * width + j] = from[j] * sigmoid(from[j]) * from[width + j];
    }
}

static void rotate(float *to, const float *x, const float *cosine, const float *sine) {
    const int half = DIM / 2;
    for (int d = 0; d < half; d++) {
        to[d] = x[d] * cosine[d] - x[d + half] * sine[d];
        to[d + half] = x[d + half] * cosine[d + half] + x[d] * sine[d + half];
    }
}

static void score(float *to, const float *q, const float *keys, int64_t count) {
    for (int64_t j = 0; j < count; j++) {
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (int d = 0; d < DIM; d++) sum += q[d] * keys[j * DIM + d];
        to[j] = sum;
    }
}

/* to += weights @ values, four values at a time: a sum then goes to memory a quarter as often. */
static void mix(float *to, const float *weight, const float *values, int64_t count) {
    int64_t j = 0;
    for (; j + 4 <= count; j += 4, values += 4 * DIM)
        #pragma omp simd
        for (int d = 0; d < DIM; d++)
            to[d] += weight[j] * values[d] + weight[j + 1] * values[DIM + d]
                     + weight[j + 2] * values[2 * DIM + d] + weight[j + 3] * values[3 * DIM + d];
    for (; j < count; j++, values += DIM)
        for (int d = 0; d < DIM; d++) to[d] += weight[j] * values[d];
}

/* Where attention of a step reads and writes: qkv (rows, heads + 2 groups, DIM), cosine and sine
 * (rows, DIM), out (rows, heads, DIM); own keys and values (rows, groups, room, DIM), the prompts'
 * (prompts, groups, width, DIM). Rows come in the order of their prompts, so that a shared prompt
 * stays in the CPU's nearest memory; nothing is padded, masked or copied. */
typedef struct {
    float *out, *qkv;
    const float *cosine, *sine;
    float *own_keys, *own_values;
    const float *keys, *values;
    const int64_t *order, *length, *prompt, *prompt_length;
    int64_t rows, heads, groups, room, width;
} step;

/* Rotate the queries of the i-th row and of group g, and its key; remember key and value; look. A row
 * has keys in two places: its prompt's, kept once for all rows that answer it, and its own.
 * weight: room for as many numbers as a row can have keys. */
static void look(const step *t, int64_t i, int64_t g, float *weight) {
    const float scale = 1.0f / sqrtf(DIM);
    const int64_t each = t->heads / t->groups, row = t->order[i], own = t->length[row];
    const int64_t before = t->prompt_length[t->prompt[row]], count = before + own + 1;
    const int64_t mine = (row * t->groups + g) * t->room * DIM;
    const int64_t shared = (t->prompt[row] * t->groups + g) * t->width * DIM;
    const float *heads_of_row = t->qkv + row * (t->heads + 2 * t->groups) * DIM;
    const float *turn = t->cosine + row * DIM, *other = t->sine + row * DIM;
    rotate(t->own_keys + mine + own * DIM, heads_of_row + (t->heads + g) * DIM, turn, other);
    memcpy(t->own_values + mine + own * DIM, heads_of_row + (t->heads + t->groups + g) * DIM,
           DIM * sizeof(float));
    for (int64_t h = g * each; h < (g + 1) * each; h++) {
        float q[DIM], to[DIM] = {0}, most = -INFINITY, sum = 0;
        rotate(q, heads_of_row + h * DIM, turn, other);
        for (int d = 0; d < DIM; d++) q[d] *= scale;
        score(weight, q, t->keys + shared, before);
        score(weight + before, q, t->own_keys + mine, own + 1);
        #pragma omp simd reduction(max : most)
        for (int64_t j = 0; j < count; j++) most = weight[j] > most ? weight[j] : most;
        #pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < count; j++) {
            weight[j] = exponential(weight[j] - most);
            sum += weight[j];
        }
        mix(to, weight, t->values + shared, before);
        mix(to, weight + before, t->own_values + mine, own + 1);
        for (int d = 0; d < DIM; d++) t->out[(row * t->heads + h) * DIM + d] = to[d] / sum;
    }
}

/* All rows; spare: threads * longest numbers, longest being the most keys a row can have. */
void attend(float *out, float *qkv, const float *cosine, const float *sine,
            float *own_keys, float *own_values, const float *keys, const float *values,
            const int64_t *order, const int64_t *length, const int64_t *prompt,
            const int64_t *prompt_length, float *spare, int64_t rows, int64_t heads,
            int64_t groups, int64_t room, int64_t width, int64_t longest, int64_t threads) {
    const step t = {out, qkv, cosine, sine, own_keys, own_values, keys, values, order, length,
                    prompt, prompt_length, rows, heads, groups, room, width};
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t part = 0; part < threads; part++)
    for (int64_t g = 0; g < groups; g++)
    for (int64_t i = part * rows / threads; i < (part + 1) * rows / threads; i++)
        look(&t, i, g, spare + part * longest);
}
