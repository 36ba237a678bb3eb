/* A whole decode step of a few rows on a CPU with AVX-512, in float32: all layers in one parallel
 * region. Between its parts threads wait for each other, but none of them is put to sleep and woken
 * again, as it would be between calls. */
#include "kernels.c"
#include "few.h"
#include <omp.h>

/* A layer's weights; what it lacks is 0. */
typedef struct {
    const float *before, *qkv, *qkv_bias, *q_norm, *k_norm, *out, *out_bias;
    const float *between, *gate_up, *gate_up_bias, *down, *down_bias;
} block;

static inline __m512 with(__m512 sum, const float *more, int64_t j, __mmask16 mask) {
    return more ? _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, more + j)) : sum;
}

/* to (rows, n) = x (rows, depth) times the transposed weight (n, depth) and a bias, if there is one;
 * ``more``: added to what is there. The threads of a region share it, as they do all that follows. */
static void multiply(float *to, const float *x, const float *weight, const float *bias, int64_t rows,
                     int64_t n, int64_t depth, int more) {
    #pragma omp for schedule(static)
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 mask = first(n - j);
        __m512 sum[rows];
        sixteen_columns(sum, x, weight + j * depth, rows, n - j, depth);
        for (int64_t r = 0; r < rows; r++) {
            float *at = to + r * n + j;
            const __m512 all = with(with(sum[r], bias, j, mask), more ? at : 0, 0, mask);
            _mm512_mask_storeu_ps(at, mask, all);
        }
    }
}

/* to (rows, n) = silu(gate) * up of x, whose weights and biases stand one behind the other. */
static void gates(float *to, const float *x, const float *weight, const float *bias, int64_t rows,
                 int64_t n, int64_t depth) {
    #pragma omp for schedule(static)
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 mask = first(n - j);
        __m512 gate[rows], up[rows];
        sixteen_columns(gate, x, weight + j * depth, rows, n - j, depth);
        sixteen_columns(up, x, weight + (n + j) * depth, rows, n - j, depth);
        for (int64_t r = 0; r < rows; r++) {
            float a[16], b[16];
            _mm512_storeu_ps(a, with(gate[r], bias, j, mask));
            _mm512_storeu_ps(b, with(up[r], bias ? bias + n : 0, j, mask));
            for (int i = 0; i < 16; i++) a[i] = a[i] * sigmoid(a[i]) * b[i];
            _mm512_mask_storeu_ps(to + r * n + j, mask, _mm512_loadu_ps(a));
        }
    }
}

static void norms(float *to, const float *x, const float *weight, float epsilon, int64_t rows,
                  int64_t width) {
    #pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; i++) normed(to + i * width, x + i * width, weight, epsilon, width);
}

/* Norms of each head's query and key (Qwen3), in their place. */
static void head_norms(const step *t, const block *b, float epsilon) {
    const int64_t heads = t->heads, all = heads + t->groups;
    #pragma omp for schedule(static)
    for (int64_t i = 0; i < t->rows * all; i++) {
        float *head = t->qkv + (i / all * (all + t->groups) + i % all) * DIM;
        normed(head, head, i % all < heads ? b->q_norm : b->k_norm, epsilon, DIM);
    }
}

/* out (rows, hidden) = the final states of x (rows, hidden), which does not outlive it. own and
 * prompts (layers, 2, slots or known, groups, room or width, DIM): keys and values of all layers.
 * spare: rows * (2 hidden + (2 heads + 2 groups) DIM + inner) numbers, and threads * longest. */
void decode(float *out, float *x, float *spare, const block *blocks, const float *last,
            double epsilon, const float *cosine, const float *sine, float *own, float *prompts,
            const int64_t *order, const int64_t *length, const int64_t *prompt,
            const int64_t *prompt_length, int64_t layers, int64_t rows, int64_t hidden,
            int64_t inner, int64_t heads, int64_t groups, int64_t slots, int64_t known,
            int64_t room, int64_t width, int64_t threads) {
    const int64_t wide = (heads + 2 * groups) * DIM, longest = room + width;
    const int64_t mine = slots * groups * room * DIM, theirs = known * groups * width * DIM;
    float *read = spare, *qkv = read + rows * hidden, *seen = qkv + rows * wide;
    float *opened = seen + rows * heads * DIM, *weights = opened + rows * inner;
    #pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t l = 0; l < layers; l++) {
        const block *b = blocks + l;
        const step t = {seen, qkv, cosine, sine, own + 2 * l * mine, own + (2 * l + 1) * mine,
                        prompts + 2 * l * theirs, prompts + (2 * l + 1) * theirs, order, length,
                        prompt, prompt_length, rows, heads, groups, room, width};
        norms(read, x, b->before, epsilon, rows, hidden);
        multiply(qkv, read, b->qkv, b->qkv_bias, rows, wide, hidden, 0);
        if (b->q_norm) head_norms(&t, b, epsilon);
        #pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < rows * groups; unit++)
            look(&t, unit % rows, unit / rows, weights + omp_get_thread_num() * longest);
        multiply(x, seen, b->out, b->out_bias, rows, hidden, heads * DIM, 1);
        norms(read, x, b->between, epsilon, rows, hidden);
        gates(opened, read, b->gate_up, b->gate_up_bias, rows, inner, hidden);
        multiply(x, opened, b->down, b->down_bias, rows, hidden, inner, 1);
        if (l == layers - 1) norms(out, x, last, epsilon, rows, hidden);
    }
}
