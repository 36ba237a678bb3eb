/* Attention by spans of a row on a CPU with AVX-512, of float32 or (HALF) bfloat16 numbers, summed
 * in float32: all spans and heads at once, and only what a cell sees.
 *
 * Scores are kept as (key, query), so that 16 queries are the lanes of a register and what belongs
 * to a query (its greatest score, its sum) is a lane too. Every product sums over the first place
 * of its right side, whose lanes lie in panels of WIDE; of its left side one number at a time is
 * given to all lanes.
 * Source: blocks and sums as in FlashAttention-2 (Dao 2023, arXiv:2307.08691). */
#include "turn.h"
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef HALF
typedef uint16_t number;
static inline __m512 take(const number *from) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
/* To the nearest, to the even one of two that are as near. NaN stays NaN. */
static inline void give(number *to, __m512 x) {
    const __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i up = bits + odd + _mm512_set1_epi32(0x7fff);
    const __mmask16 none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i top = _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), none,
                                              _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(top));
}
#else
typedef float number;
static inline __m512 take(const number *from) { return _mm512_loadu_ps(from); }
static inline void give(number *to, __m512 x) { _mm512_storeu_ps(to, x); }
#endif

/* Queries and keys of a block; rows of a tile, lanes of a tile, and of a register. */
enum { SIDE = 64, HIGH = 8, WIDE = 32, LANES = 16 };
typedef struct { int64_t start, stop, top, end; } span;
/* Heads (head, cell, width) with numbers between those of two heads and of two cells. Of a task's
 * spans those queries count that are not before ``late``, where it is given. */
typedef struct { const number *at; int64_t head, cell; } matrix;
typedef struct { matrix query, key, value; const span *table; const int64_t *late;
                 int64_t spans, heads, kept, cells, width; float scale; } task;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t whole(int64_t n, int64_t by) { return (n + by - 1) / by * by; }
static int64_t begin(const task *t, int64_t i) { return t->late ? t->late[i] : 0; }

/* The cell of a span's i-th key: first come those of the prompt. */
static inline int64_t cell(span s, int64_t i) {
    const int64_t before = s.end - s.top;
    return i < before ? s.top + i : s.start + i - before;
}

/* 2^x for x <= 0. */
static inline __m512 power(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-1000.0f), x); /* in this order NaN stays */
    const __m512 k = _mm512_roundscale_ps(x, 0), r = x - k;
    __m512 p = r * 1.535336188e-4f + 1.339887440e-3f;
    p = p * r + 9.618437357e-3f;
    p = p * r + 5.550332471e-2f;
    p = p * r + 2.402264791e-1f;
    p = p * r + 6.931472029e-1f;
    return _mm512_scalef_ps(p * r + 1.0f, k);
}

/* The lanes, from the ``late``-th on, that see a key. */
static inline __mmask16 seen(int64_t late) {
    return late <= 0 ? 0xffff : late >= LANES ? 0 : (__mmask16)(0xffff << late);
}

/* Keys or queries ``from`` on, ``count`` and zeros behind them up to a whole number of LANES: as
 * rows, in panels (width / WIDE, ``height``, WIDE); and turned, times ``by``, in panels
 * (rows / panel, width, panel). Either may be missing. */
static void pack(float *flat, int64_t height, float *turned, int64_t panel, float by, matrix x,
                 int64_t head, span s, int64_t from, int64_t count, int64_t width) {
    __m512 row[LANES];
    const number *first = x.at + head * x.head;
    for (int64_t i = 0; i < count; i += LANES) for (int64_t d = 0; d < width; d += LANES) {
        for (int64_t r = 0; r < LANES; r++) {
            const number *at = first + cell(s, from + i + r) * x.cell + d;
            row[r] = i + r < count ? take(at) : _mm512_setzero_ps();
            _mm_prefetch((const char *)(at + LANES * x.cell), _MM_HINT_T0); /* rows lie apart */
        }
        if (flat) for (int64_t r = 0; r < LANES; r++)
            _mm512_storeu_ps(flat + d / WIDE * WIDE * height + (i + r) * WIDE + d % WIDE, row[r]);
        if (!turned) continue;
        turn(row);
        float *to = turned + i / panel * panel * width + d * panel + i % panel;
        for (int64_t c = 0; c < LANES; c++, to += panel) {
            const __m512 z = row[c] * by;
            if (panel >= LANES) _mm512_storeu_ps(to, z);
            else {
                _mm256_storeu_ps(to, _mm512_castps512_ps256(z));
                _mm256_storeu_ps(to + HIGH * width, _mm512_extractf32x8_ps(z, 1));
            }
        }
    }
}

/* HIGH rows of ``vectors`` registers: sums over ``depth`` of left (row, along) times right. */
static inline __attribute__((always_inline)) void
tile(float *to, int64_t next, const float *left, int64_t row, int64_t along, const float *right,
     int64_t depth, int vectors, int more) {
    __m512 sum[HIGH][2];
    for (int r = 0; r < HIGH; r++) for (int v = 0; v < vectors; v++)
        sum[r][v] = more ? _mm512_loadu_ps(to + r * next + v * LANES) : _mm512_setzero_ps();
    for (; depth > 0; depth--, left += along, right += WIDE) {
        const __m512 x = _mm512_loadu_ps(right);
        const __m512 y = vectors > 1 ? _mm512_loadu_ps(right + LANES) : x;
        for (int r = 0; r < HIGH; r++) {
            const __m512 one = _mm512_set1_ps(left[r * row]);
            sum[r][0] = _mm512_fmadd_ps(one, x, sum[r][0]);
            if (vectors > 1) sum[r][1] = _mm512_fmadd_ps(one, y, sum[r][1]);
        }
    }
    for (int r = 0; r < HIGH; r++) for (int v = 0; v < vectors; v++)
        _mm512_storeu_ps(to + r * next + v * LANES, sum[r][v]);
}

/* to (keys, SIDE) = left (keys, width) times right (queries, width), both turned. In a block, a
 * query i sees a key j where j <= ahead + i. */
static void scores(float *to, const float *left, const float *right, int64_t keys, int64_t queries,
                   int64_t ahead, int64_t width) {
    for (int64_t i = 0; i < queries; i += WIDE)
        for (int64_t j = 0; j < least(keys, ahead + i + WIDE); j += HIGH) {
            float *at = to + j * SIDE + i;
            const float *a = left + j * width, *b = right + i * width;
            if (queries - i > LANES) tile(at, SIDE, a, 1, HIGH, b, width, 2, 0);
            else tile(at, SIDE, a, 1, HIGH, b, width, 1, 0);
        }
}

/* to (queries, width) += the scores' (keys, queries) times right (keys, width). */
static void by_query(float *to, const float *score, const float *right, int64_t height,
                     int64_t keys, int64_t queries, int64_t ahead, int64_t width) {
    for (int64_t d = 0; d < width; d += WIDE)
        for (int64_t i = 0; i < queries; i += HIGH) {
            const int64_t depth = least(keys, ahead + i + HIGH);
            float *at = to + i * width + d;
            const float *b = right + d * height;
            if (width - d > LANES) tile(at, width, score + i, 1, SIDE, b, depth, 2, 1);
            else tile(at, width, score + i, 1, SIDE, b, depth, 1, 1);
        }
}

/* to (keys, width) += the scores' (keys, queries) times right (queries, width). */
static void by_key(float *to, const float *score, const float *right, int64_t keys,
                   int64_t queries, int64_t ahead, int64_t width) {
    for (int64_t d = 0; d < width; d += WIDE)
        for (int64_t j = 0; j < keys; j += HIGH) {
            const int64_t from = most(0, j - ahead), depth = queries - from;
            float *at = to + j * width + d;
            const float *a = score + j * SIDE + from, *b = right + d * SIDE + from * WIDE;
            if (width - d > LANES) tile(at, width, a, SIDE, 1, b, depth, 2, 1);
            else tile(at, width, a, SIDE, 1, b, depth, 1, 1);
        }
}

/* Up to where scores of 16 queries from the i-th on were computed. */
static inline int64_t reach(int64_t keys, int64_t ahead, int64_t i) {
    return most(0, least(keys, whole(most(0, ahead + i + LANES), HIGH)));
}

/* Scores become shares of the greatest so far; ``fade``: what those before are worth now. */
static void soften(float *score, float *greatest, float *sum, float *fade, int64_t keys,
                   int64_t queries, int64_t ahead) {
    for (int64_t i = 0; i < queries; i += LANES) {
        const int64_t last = reach(keys, ahead, i);
        const __m512 before = _mm512_loadu_ps(greatest + i);
        __m512 best = before;
        for (int64_t j = 0; j < last; j++)
            best = _mm512_mask_max_ps(best, seen(j - ahead - i), best,
                                      _mm512_loadu_ps(score + j * SIDE + i));
        const __m512 faded = power(before - best);
        __m512 total = _mm512_loadu_ps(sum + i) * faded;
        for (int64_t j = 0; j < last; j++) {
            float *at = score + j * SIDE + i;
            const __m512 share = _mm512_maskz_mov_ps(seen(j - ahead - i),
                                                     power(_mm512_loadu_ps(at) - best));
            _mm512_storeu_ps(at, share);
            total += share;
        }
        _mm512_storeu_ps(greatest + i, best);
        _mm512_storeu_ps(sum + i, total);
        _mm512_storeu_ps(fade + i, faded);
    }
}

/* Numbers of room for one thread: what is kept of keys, ``many`` times, and of a block. */
static float *room_for(const task *t, int64_t many) {
    int64_t longest = 0;
    for (int64_t i = 0; i < t->spans; i++) {
        const span s = t->table[i];
        longest = most(longest, s.end - s.top + s.stop - s.start);
    }
    const int64_t keys = whole(longest, LANES) + LANES, width = whole(t->width, WIDE);
    return aligned_alloc(64, 4 * (many * keys * width + 5 * SIDE * width + 2 * SIDE * SIDE));
}

/* The queries of a block from the ``from``-th of a span on, over all keys they see. */
static void look(const task *t, number *out, float *total, int64_t head, span s, int64_t from,
                 const float *kept, const float *values, int64_t height, float *room) {
    const int64_t width = t->width, before = s.end - s.top, count = s.stop - s.start;
    const int64_t some = least(SIDE, count - from), queries = whole(some, LANES);
    const int64_t last = before + from + some;
    float *score = room, *turned = score + SIDE * SIDE, *made = turned + SIDE * width;
    float greatest[SIDE], sum[SIDE], fade[SIDE];
    const span own = {s.start, s.stop, 0, 0};
    pack(0, 0, turned, WIDE, t->scale * 1.44269504f, t->query, head, own, from, some, width);
    for (int64_t i = 0; i < SIDE; i++) greatest[i] = -INFINITY, sum[i] = 0;
    memset(made, 0, 4 * queries * width);
    for (int64_t k = 0; k < last; k += SIDE) {
        const int64_t keys = least(SIDE, last - k), ahead = before + from - k;
        scores(score, kept + k * width, turned, keys, queries, ahead, width);
        soften(score, greatest, sum, fade, whole(keys, HIGH), queries, ahead);
        if (k) for (int64_t i = 0; i < some; i++) for (int64_t d = 0; d < width; d++)
            made[i * width + d] *= fade[i];
        by_query(made, score, values + k * WIDE, height, keys, queries, ahead, width);
    }
    for (int64_t i = 0; i < some; i++) {
        const int64_t at = s.start + from + i;
        const float by = 1.0f / sum[i];
        total[head * t->cells + at] = greatest[i] + log2f(sum[i]);
        for (int64_t d = 0; d < width; d += LANES)
            give(out + (at * t->heads + head) * width + d,
                 _mm512_loadu_ps(made + i * width + d) * by);
    }
}

#define GIVEN const number *query, int64_t query_head, int64_t query_cell, const number *key, \
    int64_t key_head, int64_t key_cell, const number *value, int64_t value_head, \
    int64_t value_cell, const span *table, const int64_t *late, int64_t spans, int64_t heads, \
    int64_t kept, int64_t cells, int64_t width, double scale, int64_t threads
#define TASK {{query, query_head, query_cell}, {key, key_head, key_cell}, \
    {value, value_head, value_cell}, table, late, spans, heads, kept, cells, width, scale}

/* out (cells, heads, width); total (heads, cells): the logarithms, to the base of 2, of the sums.
 * 0 without memory. */
int64_t see(number *out, float *total, GIVEN) {
    const task t = TASK;
    const int64_t group = heads / kept;
    int64_t failed = 0;
    #pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        float *room = room_for(&t, 2);
        failed = !room;
        #pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < spans * kept; unit++) {
            const span s = table[unit / kept];
            const int64_t head = unit % kept, count = s.end - s.top + s.stop - s.start;
            const int64_t height = whole(count, LANES);
            if (!room) continue;
            float *turned = room, *flat = turned + height * width;
            float *more = flat + height * whole(width, WIDE);
            pack(0, 0, turned, HIGH, 1.0f, t.key, head, s, 0, count, width);
            pack(flat, height, 0, 0, 1.0f, t.value, head, s, 0, count, width);
            for (int64_t g = head * group; g < (head + 1) * group; g++)
                for (int64_t from = begin(&t, unit / kept); from < s.stop - s.start; from += SIDE)
                    look(&t, out, total, g, s, from, turned, flat, height, more);
        }
        free(room);
    }
    return !failed;
}

/* Scores become their shares of all, and the slopes of the shares those of the scores. */
static void slope(float *score, float *ahead_of, const float *total, const float *along,
                  int64_t keys, int64_t queries, int64_t ahead) {
    for (int64_t i = 0; i < queries; i += LANES) {
        const __m512 whole_of = _mm512_loadu_ps(total + i), pull = _mm512_loadu_ps(along + i);
        for (int64_t j = 0; j < reach(keys, ahead, i); j++) {
            float *at = score + j * SIDE + i, *of = ahead_of + j * SIDE + i;
            const __m512 share = _mm512_maskz_mov_ps(seen(j - ahead - i),
                                                     power(_mm512_loadu_ps(at) - whole_of));
            _mm512_storeu_ps(at, share);
            _mm512_storeu_ps(of, share * (_mm512_loadu_ps(of) - pull));
        }
    }
}

/* What a way back is given and makes: out and ahead (cells, heads, width), total (heads, cells);
 * gradients of query (cells, heads, width) and of key and value (cells, kept, width). */
typedef struct { const number *out, *ahead; const float *total;
                 float *of_query, *of_key, *of_value; } way;
/* A span's keys in a thread's room, as they are needed, and their gradients. */
typedef struct { float *key, *turned, *value, *of_key, *of_value; int64_t height; } side;

/* The total of each query, and the sum of its out times its slope. */
static void along(float *total, float *pull, const task *t, const way *w, int64_t head,
                  int64_t first, int64_t some) {
    for (int64_t i = 0; i < SIDE; i++) total[i] = pull[i] = 0;
    for (int64_t i = 0; i < some; i++) {
        const int64_t at = ((first + i) * t->heads + head) * t->width;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t d = 0; d < t->width; d += LANES)
            sum += take(w->out + at + d) * take(w->ahead + at + d);
        pull[i] = _mm512_reduce_add_ps(sum);
        total[i] = w->total[head * t->cells + first + i];
    }
}

/* The queries of a block: their gradients, and what they add to those of the keys. */
static void look_back(const task *t, const way *w, int64_t head, span s, int64_t from, side k,
                      float *room) {
    const int64_t width = t->width, before = s.end - s.top, count = s.stop - s.start;
    const int64_t some = least(SIDE, count - from), queries = whole(some, LANES);
    const int64_t last = before + from + some, block = SIDE * whole(width, WIDE);
    float *score = room, *slopes = score + SIDE * SIDE, *flat = slopes + SIDE * SIDE;
    float *turned = flat + block, *ahead = turned + block, *ahead_turned = ahead + block;
    float *made = ahead_turned + block, total[SIDE], pull[SIDE];
    const span own = {s.start, s.stop, 0, 0};
    const matrix above = {w->ahead, width, t->heads * width};
    pack(flat, SIDE, turned, WIDE, t->scale * 1.44269504f, t->query, head, own, from, some, width);
    pack(ahead, SIDE, ahead_turned, WIDE, 1.0f, above, head, own, from, some, width);
    along(total, pull, t, w, head, s.start + from, some);
    memset(made, 0, 4 * queries * width);
    for (int64_t j = 0; j < last; j += SIDE) {
        const int64_t keys = least(SIDE, last - j), past = before + from - j;
        scores(score, k.turned + j * width, turned, keys, queries, past, width);
        scores(slopes, k.value + j * width, ahead_turned, keys, queries, past, width);
        slope(score, slopes, total, pull, whole(keys, HIGH), queries, past);
        by_key(k.of_value + j * width, score, ahead, keys, some, past, width);
        by_key(k.of_key + j * width, slopes, flat, keys, some, past, width);
        by_query(made, slopes, k.key + j * WIDE, k.height, keys, queries, past, width);
    }
    for (int64_t i = 0; i < some; i++) for (int64_t d = 0; d < width; d++)
        w->of_query[((s.start + from + i) * t->heads + head) * width + d] =
            made[i * width + d] * t->scale;
}

static inline void put(float *to, __m512 x, int more) {
    _mm512_storeu_ps(to, more ? _mm512_add_ps(_mm512_loadu_ps(to), x) : x);
}

/* A span's gradients; those of a prompt elsewhere are added to what is there, or with ``add`` all
 * of keys and values. */
static void span_back(const task *t, const way *w, int64_t head, int64_t i, int add, float *room) {
    const span s = t->table[i];
    const int64_t width = t->width, before = s.end - s.top, count = before + s.stop - s.start;
    const int64_t height = whole(count, LANES), size = height * width, group = t->heads / t->kept;
    const side k = {room + 4 * size, room, room + size, room + 2 * size, room + 3 * size, height};
    pack(k.key, height, k.turned, HIGH, 1.0f, t->key, head, s, 0, count, width);
    pack(0, 0, k.value, HIGH, 1.0f, t->value, head, s, 0, count, width);
    memset(k.of_key, 0, 8 * size);
    for (int64_t g = head * group; g < (head + 1) * group; g++)
        for (int64_t from = begin(t, i); from < s.stop - s.start; from += SIDE)
            look_back(t, w, g, s, from, k, k.key + height * whole(width, WIDE));
    for (int64_t j = 0; j < count; j++) {
        const int64_t at = (cell(s, j) * t->kept + head) * width;
        const int more = add || j < before;
        for (int64_t d = 0; d < width; d += LANES) {
            const float *key = k.of_key + j * width + d, *value = k.of_value + j * width + d;
            put(w->of_key + at + d, _mm512_loadu_ps(key) * t->scale, more);
            put(w->of_value + at + d, _mm512_loadu_ps(value), more);
        }
    }
}

/* The span without a prompt elsewhere that holds the i-th's, which may be itself; -1: none does. */
static int64_t holder(const task *t, int64_t i) {
    const span s = t->table[i];
    if (!s.end) return i;
    for (int64_t j = 0; j < t->spans; j++) {
        const span of = t->table[j];
        if (!of.end && of.start <= s.top && s.end <= of.stop) return j;
    }
    return -1;
}

/* One thread does all spans of a prompt, in order behind the one that holds it, so that no sum goes
 * by the threads; where a prompt is in no one span, all of a head. 0 without memory. */
int64_t see_back(float *of_query, float *of_key, float *of_value, const number *ahead,
                 const number *out, const float *total, GIVEN) {
    const task t = TASK;
    const way w = {out, ahead, total, of_query, of_key, of_value};
    int64_t failed = 0, strays = 0;
    for (int64_t i = 0; i < spans; i++) strays += holder(&t, i) < 0;
    if (strays) memset(of_key, 0, 4 * cells * kept * width);
    if (strays) memset(of_value, 0, 4 * cells * kept * width);
    #pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        float *room = room_for(&t, 5);
        failed = !room;
        #pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < spans * kept; unit++) {
            const int64_t first = strays ? 0 : unit / kept, head = unit % kept;
            if (!room || unit / kept != first || (!strays && table[first].end)) continue;
            span_back(&t, &w, head, first, strays > 0, room);
            for (int64_t i = 0; i < spans; i++)
                if (i != first && (strays || holder(&t, i) == first))
                    span_back(&t, &w, head, i, strays > 0, room);
        }
        free(room);
    }
    return !failed;
}
