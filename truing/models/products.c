/* Float32 products on a CPU with AVX-512: of a few rows, whose weights are read but once; and, where
 * the CPU multiplies bytes in tiles (AMX), of many, digit by digit. */
#include "few.h"
#include <math.h>
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

#if defined __AMX_INT8__ && defined __AVX512VBMI__
#include "digits.h"

/* Whether the kernel lets this process have tiles. */
int64_t allowed(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

static void configure(void) {
    struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } tiles = {1};
    for (int i = 0; i < 8; i++) tiles.bytes[i] = 64, tiles.rows[i] = 16;
    _tile_loadconfig(&tiles);
}

#define DOT _tile_dpbssd
#define LEFT(tile, i) _tile_loadd(tile, left + TILE * (i), DEEP)
#define RIGHT(tile, i) _tile_loadd(tile, right + TILE * (i), DEEP)
/* A step of three digits, in an order in which no sum is needed again soon. Sums: of places that add
 * up to 2 in tile 0, to 3 in 1, to 4 in some and others, to 5 in 4. Left out: to 6. */
#define THREE(some, others) \
    LEFT(5, 0); RIGHT(6, 0); DOT(0, 5, 6); \
    RIGHT(7, 1); DOT(1, 5, 7); \
    RIGHT(6, 2); DOT(some, 5, 6); \
    LEFT(5, 1); DOT(4, 5, 6); DOT(others, 5, 7); \
    RIGHT(6, 0); DOT(1, 5, 6); \
    LEFT(5, 2); DOT(some, 5, 6); DOT(4, 5, 7)
/* And of two. */
#define TWO \
    LEFT(5, 0); RIGHT(7, 1); DOT(1, 5, 7); RIGHT(6, 0); DOT(0, 5, 6); \
    LEFT(5, 1); DOT(2, 5, 7); DOT(1, 5, 6)
enum { SUMS = 5, SUM = SIDE * SIDE };

/* Sums that wait until they are put where they are to stand, or in addition to what is there. */
typedef struct {
    int32_t sums[SUMS * SUM] __attribute__((aligned(64)));
    float *to, by;
    const float *down, *across;
    int64_t next, rows, columns, more;
} pending;

/* Those of some rows, in the units of both sides. */
static inline void put(const pending *x, int64_t from, int64_t until, int digits) {
    const __m512 by = _mm512_set1_ps(DIGIT), across = _mm512_loadu_ps(x->across) * x->by;
    const __mmask16 mask = first(x->columns);
    for (int64_t i = from; i < least(until, x->rows); i++) {
        const __m512i *sums = (const __m512i *)x->sums + i;
        __m512 sum = _mm512_cvtepi32_ps(sums[0]) * by + _mm512_cvtepi32_ps(sums[SIDE]);
        sum = sum * by + _mm512_cvtepi32_ps(_mm512_add_epi32(sums[2 * SIDE], sums[3 * SIDE]));
        if (digits == 3) sum = sum * by + _mm512_cvtepi32_ps(sums[4 * SIDE]);
        sum = sum * x->down[i] * across;
        float *to = x->to + i * x->next;
        if (x->more) sum += _mm512_maskz_loadu_ps(mask, to);
        _mm512_mask_storeu_ps(to, mask, sum);
    }
}

static inline void store(int32_t *sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + SUM, 64);
    _tile_stored(2, sums + 2 * SUM, 64);
    _tile_stored(3, sums + 3 * SUM, 64);
    _tile_stored(4, sums + 4 * SUM, 64);
}

static inline void empty(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
}

/* The sums of two strips. Between the steps those of the strips ``before`` are put in place, and what
 * will be needed ``soon`` is fetched. */
static inline void tiles(pending *now, const pending *before, const int8_t *left, const int8_t *right,
                         int64_t steps, int digits, const char *soon) {
    empty();
    for (int64_t step = 0; step < steps; step++, left += digits * TILE, right += digits * TILE) {
        if (digits == 2) { TWO; } else if (step % 2) { THREE(3, 2); } else { THREE(2, 3); }
        put(before, SIDE * step / steps, SIDE * (step + 1) / steps, digits);
        for (int i = 0; i < 4; i++, soon += 64) _mm_prefetch(soon, _MM_HINT_T1);
    }
    store(now->sums);
}

/* What digits beyond add to the sums of two strips, by each digit of the other side. */
static void beyond(pending *now, const pending *before, strip *left, strip *right, int64_t steps,
                   int digits) {
    empty();
    for (int64_t step = 0; step < steps; step++) {
        const int a = left->wide[step], b = right->wide[step];
        if (a) _tile_loadd(5, digit(left, step, steps, digits, 0), DEEP);
        if (b) _tile_loadd(6, digit(right, step, steps, digits, 0), DEEP);
        if (a && b) DOT(0, 5, 6);
#define BEYOND(sum, i) \
        if (a) { _tile_loadd(7, digit(right, step, steps, digits, i), DEEP); DOT(sum, 5, 7); } \
        if (b) { _tile_loadd(7, digit(left, step, steps, digits, i), DEEP); DOT(sum, 7, 6); }
        BEYOND(1, 1) BEYOND(2, 2)
        if (digits == 3) { BEYOND(4, 3) }
    }
    put(before, 0, SIDE, digits);
    store(now->sums);
}

/* Products that are asked for: each matrix of one side times that of the other, which is but one on
 * at least one side. c: where they are to stand. */
typedef struct { float *c[MOST]; stack left, right; } task;

/* A strip by a panel of strips: their sums over some steps, to what is there if there is ``more``.
 * (row, column): the first of both. */
static void panel(const task *t, int64_t row, int64_t column, strip *left, strip *right, int64_t bytes,
                  int64_t columns, int64_t steps, int digits, int more) {
    pending both[2], *now = both, *before = both + 1;
    const int64_t share = parts(bytes, 64 * parts(columns, SIDE)) * 64;
    const char *soon = (const char *)left + bytes; /* the next strip, a share at a time */
    const spot here = place(&t->left, row);
    const int64_t rows = least(SIDE, t->left.part[here.part].rows - here.row);
    before->rows = before->columns = 0, before->across = right->unit, before->by = 0; /* none waits */
    for (; columns > 0; columns -= SIDE, column += SIDE, soon += share) {
        const spot there = place(&t->right, column);
        const int64_t next = t->right.part[there.part].rows;
        float *to = t->c[here.part + there.part] + here.row * next + there.row;
        for (int64_t i = 0; i < rows; i++) __builtin_prefetch(to + i * next, 1);
        for (int i = 0; i < 1 + (left->any || right->any); i++) {
            now->to = to, now->down = left->unit, now->across = right->unit, now->next = next;
            now->rows = rows, now->columns = least(columns, next - there.row), now->more = more || i;
            now->by = i ? DIGIT * DIGIT : 1;
            if (i) beyond(now, before, left, right, steps, digits);
            else if (digits == 2) tiles(now, before, left->tiles, right->tiles, steps, 2, soon);
            else tiles(now, before, left->tiles, right->tiles, steps, 3, soon);
            pending *last = now;
            now = before, before = last;
        }
        right = (strip *)((char *)right + bytes);
    }
    put(before, 0, SIDE, digits);
}

/* Rows and columns from (row, column) to (bottom, side), over ``whole`` numbers each, by one thread
 * in its own ``room``. */
static void block(const task *t, int64_t row, int64_t bottom, int64_t column, int64_t side,
                  int64_t whole, int64_t depth, int digits, int more, int8_t *room) {
    const int64_t bytes = strip_bytes(depth / DEEP, digits), across = side - column;
    const int64_t width = SIDE * parts(parts(across, SIDE), parts(across, PANEL));
    int8_t *right = room, *left = room + PANEL / SIDE * bytes;
    for (int64_t k = 0; k < whole; k += depth)
    for (int64_t top = row; top < bottom; top += ROWS) {
        const int64_t deep = least(depth, whole - k), rows = least(ROWS, bottom - top);
        strips(left, &t->left, top, rows, k, deep, bytes, digits, 0);
        for (int64_t from = column; from < side; from += width) {
            const int64_t columns = least(width, side - from);
            strips(right, &t->right, from, columns, k, deep, bytes, digits, 1);
            for (int64_t i = 0; i < rows; i += SIDE)
                panel(t, top + i, from, (strip *)(left + i / SIDE * bytes), (strip *)right, bytes,
                      columns, parts(deep, DEEP), digits, more || k);
        }
    }
}

static pthread_mutex_t turnstile = PTHREAD_MUTEX_INITIALIZER;
static int8_t *room;
static int64_t size;

/* Whether there is room for so many bytes. What is cut is read again and again: in large pages,
 * where the system has them, its addresses need not be looked up each time. */
static int roomy(int64_t needed) {
    if (size < needed) {
        const int64_t bytes = LARGE * parts(needed, LARGE);
        free(room);
        room = aligned_alloc(LARGE, bytes);
        size = room ? bytes : 0;
        if (room) madvise(room, bytes, MADV_HUGEPAGE);
    }
    return room != 0;
}

/* The products of a task, of sums over ``whole`` numbers, with ``more`` added to what is there; 0
 * without memory. */
int64_t product(const task *t, int64_t whole, int64_t digits, int64_t more, int64_t threads) {
    const int64_t m = height(&t->left), n = height(&t->right);
    const int64_t depth = DEEP * parts(parts(whole, DEEP), parts(whole, DEPTH));
    int64_t across = 1; /* threads side by side: so many that least is cut twice */
    for (int64_t t = 2; t <= threads; t++)
        if (threads % t == 0 && n / t + m * t / threads < n / across + m * across / threads)
            across = t;
    const int64_t tall = SIDE * parts(parts(m, SIDE), threads / across);
    const int64_t wide = SIDE * parts(parts(n, SIDE), across);
    /* One strip more: what is fetched soon may lie behind the last. */
    const int64_t each = (PANEL / SIDE + parts(least(tall, ROWS), SIDE) + 1)
        * strip_bytes(depth / DEEP, digits);
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
                      digits, more, room + share * each);
        }
        _tile_release();
    }
    pthread_mutex_unlock(&turnstile);
    return there;
}
#endif
