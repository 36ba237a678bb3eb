/* The product of a few rows with a weight that is read but once, by AVX-512. */
#include "turn.h"
#include <stdint.h>
#include <string.h>

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }

/* 16 columns of the weight are turned, so that each is a lane, for CHUNK numbers along the sum; then
 * they meet up to 16 rows whose sums stay in registers. What lies SOON numbers ahead is fetched. */
enum { CHUNK = 128, SOON = 128 };

#define SUMS(some) \
    static void sums_##some(__m512 *to, const float *x, int64_t next, const __m512 *w, int64_t deep) { \
        __m512 sum[some]; \
        for (int r = 0; r < some; r++) sum[r] = _mm512_setzero_ps(); \
        for (int64_t k = 0; k < deep; k++) \
            for (int r = 0; r < some; r++) sum[r] += w[k] * x[r * next + k]; \
        for (int r = 0; r < some; r++) to[r] += sum[r]; \
    }
SUMS(16) SUMS(8) SUMS(4) SUMS(2) SUMS(1)

/* sum (rows): x (rows, depth) times 16 rows of a weight (n, depth), or n where there are fewer. What a
 * row's numbers are does not depend on how many rows there are. */
static void sixteen_columns(__m512 *sum, const float *x, const float *weight, int64_t rows, int64_t n,
                            int64_t depth) {
    __m512 w[CHUNK];
    memset(sum, 0, rows * sizeof *sum);
    for (int64_t k = 0; k < depth; k += CHUNK) {
        const int64_t deep = least(CHUNK, depth - k);
        for (int64_t d = 0; d < deep; d += 16) {
            const float *from = weight + k + d;
            /* Behind the end of a row come those of the next 16. */
            const int64_t ahead = k + d + SOON < depth ? SOON : SOON + 15 * depth;
            for (int i = 0; i < 16; i++, from += depth) {
                w[d + i] = _mm512_maskz_loadu_ps(i < n ? first(deep - d) : 0, from);
                _mm_prefetch(from + ahead, _MM_HINT_T0);
            }
            turn(w + d);
        }
        for (int64_t r = 0, left; (left = rows - r);) {
            const float *at = x + r * depth + k;
            if (left >= 16) sums_16(sum + r, at, depth, w, deep), r += 16;
            else if (left >= 8) sums_8(sum + r, at, depth, w, deep), r += 8;
            else if (left >= 4) sums_4(sum + r, at, depth, w, deep), r += 4;
            else if (left >= 2) sums_2(sum + r, at, depth, w, deep), r += 2;
            else sums_1(sum + r, at, depth, w, deep), r += 1;
        }
    }
}
