/* Float32 products on a CPU with AVX-512: of a few rows, whose weights are read but once; and, where
 * the CPU multiplies bfloat16 in tiles (AMX), of many, in pieces. */
#include "few.h"
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int64_t parts(int64_t n, int64_t by) { return (n + by - 1) / by; }

/* out (rows, n) = x (rows, depth) times the transposed weight (n, depth). */
void few(float *out, const float *x, const float *weight, int64_t rows, int64_t n, int64_t depth,
         int64_t threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t j = 0; j < n; j += 16) {
        __m512 sum[rows];
        sixteen_columns(sum, x, weight + j * depth, rows, n - j, depth);
        for (int64_t r = 0; r < rows; r++)
            _mm512_mask_storeu_ps(out + r * n + j, first(n - j), sum[r]);
    }
}

#ifdef __AMX_BF16__
/* Of many rows: each number becomes the sum of two or three of bfloat16, and what matters of their
 * products is summed in float32.
 *
 * Three pieces hold all 24 bits of a float32. Of their nine products the three least lie below its
 * last bit and are left out; of the four of two pieces, the least.
 * Source: Henry, Tang and Heinecke 2019, arXiv:1904.06376. */
typedef uint16_t bf16;
/* ``next`` numbers lie between those of two rows, ``along`` between those that a sum goes over. */
typedef struct { const float *at; int64_t next, along, rows; } matrix;
/* Up to MOST matrices, the rows of each below those of the one before. All but the last have a whole
 * number of strips. */
enum { MOST = 3 };
typedef struct { matrix part[MOST]; } stack;
/* A row of a stack: the matrix that it is in, and which of its rows it is. */
typedef struct { int64_t part, row; } spot;

static inline spot place(const stack *x, int64_t row) {
    int64_t i = 0;
    while (i < MOST - 1 && row >= x->part[i].rows) row -= x->part[i++].rows;
    return (spot){i, row};
}

static int64_t height(const stack *x) {
    int64_t rows = 0;
    for (int i = 0; i < MOST; i++) rows += x->part[i].rows;
    return rows;
}

/* A tile holds 16 rows of 32 numbers. 32 rows of a matrix, cut into pieces, are a strip; in a strip
 * each step of 32 numbers along the sum has two tiles for each piece. */
enum { TILE = 512, SIDE = 32 };
#define STEP(pieces) (2 * (pieces) * TILE)
/* What is kept where it is near: of columns a panel, as deep as the second cache holds; of rows what
 * the third may. LARGE: bytes of a large page. */
enum { PANEL = 256, DEPTH = 512, ROWS = 2048, LARGE = 1 << 21 };

/* Whether the kernel lets this process have tiles. */
int64_t allowed(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

static void configure(void) {
    struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } tiles = {1};
    for (int i = 0; i < 8; i++) tiles.bytes[i] = 64, tiles.rows[i] = 16;
    _tile_loadconfig(&tiles);
}

static inline __m512i bits(__m512 x) {
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
}
static inline __m512i raised(__m512i x) { return _mm512_slli_epi32(x, 16); }
static inline __m512 rest(__m512 x, __m512i of) { return x - _mm512_castsi512_ps(of); }

/* The pieces of 32 numbers of a row, as a row of the left tiles. */
static inline void line(bf16 *to, int pieces, __m512 x, __m512 y) {
    for (int i = 0; i < pieces; i++, to += 2 * TILE) {
        const __m512i a = bits(x), b = bits(y);
        _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(a));
        _mm256_storeu_si256((__m256i *)(to + 16), _mm512_cvtepi32_epi16(b));
        x = rest(x, raised(a)), y = rest(y, raised(b));
    }
}

/* The pieces of 16 pairs that follow each other along the sum, as a row of the right tiles. */
static inline void pair(bf16 *to, int pieces, __m512 even, __m512 odd) {
    for (int i = 0; i < pieces; i++, to += 2 * TILE) {
        const __m512i a = bits(even), b = raised(bits(odd));
        _mm512_storeu_si512(to, a | b);
        even = rest(even, raised(a)), odd = rest(odd, b);
    }
}

/* The 16 numbers from (row, k) that lie side by side; zeros outside of ``rows`` and ``depth``. */
static inline __m512 sixteen(matrix x, int64_t row, int64_t k, int64_t rows, int64_t depth) {
    const int64_t left = x.along == 1 ? depth - k : rows - row;
    const __mmask16 mask = row < rows && k < depth ? first(left) : 0;
    return _mm512_maskz_loadu_ps(mask, x.at + row * x.next + k * x.along);
}

/* One step of a strip, from (row, k), for the left or the right side of a product. */
static void cut(bf16 *to, matrix x, int64_t row, int64_t k, int64_t rows, int64_t depth,
                int pieces, int right) {
    const int lies = x.along == 1;
    __m512 low[16], top[16];
    for (int tile = 0; tile < 2; tile++, row += 16, to += TILE) {
        if (lies) for (int i = 0; i < 16; i++) {
            low[i] = sixteen(x, row + i, k, rows, depth);
            top[i] = sixteen(x, row + i, k + 16, rows, depth);
        } else for (int i = 0; i < 16; i++) {
            low[i] = sixteen(x, row, k + i, rows, depth);
            top[i] = sixteen(x, row, k + 16 + i, rows, depth);
        }
        if (lies == right) turn(low), turn(top);
        if (right) for (int i = 0; i < 8; i++) {
            pair(to + SIDE * i, pieces, low[2 * i], low[2 * i + 1]);
            pair(to + SIDE * (i + 8), pieces, top[2 * i], top[2 * i + 1]);
        } else for (int i = 0; i < 16; i++) line(to + SIDE * i, pieces, low[i], top[i]);
    }
}

/* All steps of the strips of ``rows`` rows, in the order in which each matrix lies in memory. */
static void strips(bf16 *to, const stack *all, int64_t row, int64_t rows, int64_t k, int64_t depth,
                   int64_t strip, int pieces, int right) {
    const int64_t steps = parts(depth, SIDE);
    while (rows > 0) {
        const spot first = place(all, row);
        const matrix x = all->part[first.part];
        const int64_t some = least(rows, x.rows - first.row), many = parts(some, SIDE);
        for (int64_t i = 0; i < steps * many; i++) {
            const int64_t at = x.along == 1 ? i / steps : i % many;
            const int64_t step = x.along == 1 ? i % steps : i / many;
            cut(to + at * strip + step * STEP(pieces), x, first.row + SIDE * at, k + SIDE * step,
                first.row + some, k + depth, pieces, right);
        }
        to += many * strip, row += some, rows -= some;
    }
}

#define LEFT(piece) \
    _tile_loadd(4, left + (piece) * 2 * TILE, 64); \
    _tile_loadd(5, left + ((piece) * 2 + 1) * TILE, 64)
#define RIGHT(piece) \
    _tile_loadd(6, right + (piece) * 2 * TILE, 64); \
    _tile_loadd(7, right + ((piece) * 2 + 1) * TILE, 64)
#define MULTIPLY \
    _tile_dpbf16ps(0, 4, 6); \
    _tile_dpbf16ps(1, 4, 7); \
    _tile_dpbf16ps(2, 5, 6); \
    _tile_dpbf16ps(3, 5, 7); \
    _mm_prefetch(soon, _MM_HINT_T1); \
    _mm_prefetch(soon + 64, _MM_HINT_T1); \
    soon += 128

/* 32 x 32 sums over some steps of two strips. Meanwhile is fetched what will be needed ``soon``, and
 * the memory that the sums are ``meant`` for. */
static void tiles(float *to, int64_t next, const bf16 *left, const bf16 *right, int64_t steps,
                  int pieces, const char *soon, const float *meant, int64_t apart) {
    bf16 unread[TILE] __attribute__((aligned(64)));
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < steps; step++, left += STEP(pieces), right += STEP(pieces)) {
        if (pieces == 3) { /* in an order in which each product needs but one side anew */
            LEFT(2); RIGHT(0); MULTIPLY; LEFT(0); MULTIPLY; LEFT(1); MULTIPLY;
            RIGHT(1); MULTIPLY; LEFT(0); MULTIPLY; RIGHT(2); MULTIPLY;
        } else {
            LEFT(1); RIGHT(0); MULTIPLY; LEFT(0); MULTIPLY; RIGHT(1); MULTIPLY;
        }
        /* Stored for nothing: a CPU that ran some steps ahead waits long at the stores below. */
        _tile_stored(4, unread, 64);
        for (int i = 0; i < 4 && 4 * step < SIDE; i++, meant += apart) {
            __builtin_prefetch(meant, 1);
            __builtin_prefetch(meant + 16, 1);
        }
    }
    _tile_stored(0, to, 4 * next);
    _tile_stored(1, to + 16, 4 * next);
    _tile_stored(2, to + 16 * next, 4 * next);
    _tile_stored(3, to + 16 * next + 16, 4 * next);
}

static void put(float *to, int64_t next, const float *sums, int64_t rows, int64_t columns, int more) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t x = 0; x < columns; x += 16) {
            const __mmask16 mask = first(columns - x);
            __m512 sum = _mm512_load_ps(sums + SIDE * i + x);
            if (more) sum += _mm512_maskz_loadu_ps(mask, to + i * next + x);
            _mm512_mask_storeu_ps(to + i * next + x, mask, sum);
        }
}

/* Products that are asked for: each matrix of one side times that of the other, which is but one on
 * at least one side. c: where they are to stand. */
typedef struct { float *c[MOST]; stack left, right; } task;

/* A strip by a panel of strips: their sums over ``depth``, to what is there if there is ``more``.
 * Each depth is summed by itself, so that long sums lose no bits. (row, column): the first of both. */
static void panel(const task *t, int64_t row, int64_t column, const bf16 *left, const bf16 *right,
                  int64_t strip, int64_t columns, int64_t depth, int pieces, int more) {
    float sums[SIDE * SIDE] __attribute__((aligned(64)));
    const int64_t share = parts(strip, SIDE * parts(columns, SIDE)) * 64;
    const char *soon = (const char *)(left + strip); /* the next strip, a share at a time */
    const spot here = place(&t->left, row);
    const int64_t rows = least(SIDE, t->left.part[here.part].rows - here.row);
    for (; columns > 0; columns -= SIDE, column += SIDE, right += strip, soon += share) {
        const spot there = place(&t->right, column);
        const int64_t next = t->right.part[there.part].rows, some = least(columns, next - there.row);
        float *to = t->c[here.part + there.part] + here.row * next + there.row;
        const int straight = !more && rows >= SIDE && some >= SIDE;
        tiles(straight ? to : sums, straight ? next : SIDE, left, right, parts(depth, SIDE), pieces,
              soon, to, next);
        if (!straight) put(to, next, sums, rows, least(SIDE, some), more);
    }
}

/* Rows and columns from (row, column) to (bottom, side), over ``whole`` numbers each, by one thread
 * in its own ``room``. */
static void block(const task *t, int64_t row, int64_t bottom, int64_t column, int64_t side,
                  int64_t whole, int64_t depth, int pieces, int more, bf16 *room) {
    const int64_t strip = depth / SIDE * STEP(pieces), across = side - column;
    const int64_t width = SIDE * parts(parts(across, SIDE), parts(across, PANEL));
    bf16 *right = room, *left = room + PANEL / SIDE * strip;
    for (int64_t k = 0; k < whole; k += depth)
    for (int64_t top = row; top < bottom; top += ROWS) {
        const int64_t deep = least(depth, whole - k), rows = least(ROWS, bottom - top);
        strips(left, &t->left, top, rows, k, deep, strip, pieces, 0);
        for (int64_t from = column; from < side; from += width) {
            const int64_t columns = least(width, side - from);
            strips(right, &t->right, from, columns, k, deep, strip, pieces, 1);
            for (int64_t i = 0; i < rows; i += SIDE)
                panel(t, top + i, from, left + i / SIDE * strip, right, strip, columns, deep, pieces,
                      more || k);
        }
    }
}

static pthread_mutex_t turnstile = PTHREAD_MUTEX_INITIALIZER;
static bf16 *room;
static int64_t size;

/* Whether there is room for so many numbers. What is cut is read again and again: in large pages,
 * where the system has them, its addresses need not be looked up each time. */
static int roomy(int64_t numbers) {
    if (size < numbers) {
        const int64_t bytes = LARGE * parts(sizeof *room * numbers, LARGE);
        free(room);
        room = aligned_alloc(LARGE, bytes);
        size = room ? numbers : 0;
        if (room) madvise(room, bytes, MADV_HUGEPAGE);
    }
    return room != 0;
}

/* The products of a task, of sums over ``whole`` numbers, with ``more`` added to what is there; 0
 * without memory. */
int64_t product(const task *t, int64_t whole, int64_t pieces, int64_t more, int64_t threads) {
    const int64_t m = height(&t->left), n = height(&t->right);
    const int64_t depth = SIDE * parts(parts(whole, SIDE), parts(whole, DEPTH));
    int64_t across = 1; /* threads side by side: so many that least is cut twice */
    for (int64_t t = 2; t <= threads; t++)
        if (threads % t == 0 && n / t + m * t / threads < n / across + m * across / threads)
            across = t;
    const int64_t tall = SIDE * parts(parts(m, SIDE), threads / across);
    const int64_t wide = SIDE * parts(parts(n, SIDE), across);
    /* One strip more: what is fetched soon may lie behind the last. */
    const int64_t strip = depth / SIDE * STEP(pieces);
    const int64_t each = (PANEL / SIDE + parts(least(tall, ROWS), SIDE) + 1) * strip;
    pthread_mutex_lock(&turnstile);
    const int there = roomy(threads * each);
    #pragma omp parallel num_threads(threads) if (there)
    {
        configure();
        /* A share each, whoever takes it: there may be fewer threads than were asked for. */
        #pragma omp for schedule(static, 1)
        for (int64_t share = 0; share < threads; share++) {
            const int64_t row = share / across * tall, column = share % across * wide;
            if (there && row < m && column < n)
                block(t, row, least(m, row + tall), column, least(n, column + wide), whole, depth,
                      pieces, more, room + share * each);
        }
        _tile_release();
    }
    pthread_mutex_unlock(&turnstile);
    return there;
}
#endif
