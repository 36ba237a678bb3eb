/* Float32 numbers as whole ones of a few digits, for matrix products by tiles of bytes (AMX): those of
 * a length of a row have two or three digits of 8 bits each, and one unit for them all.
 *
 * The digits reach as far as the largest number, but no further than WIDE times the mean size: one
 * that lies beyond has a digit more, so that a few large numbers take no bits from the others.
 * Source: Ootomo, Ozaki and Yokota 2024, arXiv:2306.11975, to which that digit is added. */
enum { WIDE = 32, REACH = 127, DIGIT = 256 };
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

/* A tile holds DEEP digits of each of SIDE rows. What is kept where it is near: of columns a panel, as
 * deep as the second cache holds; of rows what the third may. LARGE: bytes of a large page. */
enum { TILE = 1024, DEEP = 64, SIDE = 16, PANEL = 256, DEPTH = 768, ROWS = 2048, LARGE = 1 << 21 };
/* The rows of a tile, cut. Each step of DEEP numbers has a tile for each digit; behind all steps come
 * those of the digits beyond, which only a step that is ``wide`` has. */
typedef struct {
    float unit[SIDE], raise[SIDE]; /* raise: what a number is multiplied by to be a whole one */
    uint8_t wide[DEPTH / DEEP], any, unused[51];
    int8_t tiles[];
} strip;

static int64_t strip_bytes(int64_t steps, int digits) {
    return sizeof(strip) + steps * (digits + 1) * TILE;
}

/* The tile of a digit; the first is 1, and 0 the one beyond. */
static inline int8_t *digit(strip *x, int64_t step, int64_t steps, int digits, int i) {
    return x->tiles + TILE * (i ? step * digits + i - 1 : steps * digits + step);
}

/* The 16 numbers from (row, k) that lie side by side; zeros outside of ``rows`` and ``depth``. */
static inline __m512 sixteen(matrix x, int lies, int64_t row, int64_t k, int64_t rows, int64_t depth) {
    const __mmask16 mask = row < rows && k < depth ? first(lies ? depth - k : rows - row) : 0;
    return _mm512_maskz_loadu_ps(mask, x.at + row * x.next + k * x.along);
}

/* The units of a strip's rows, of whose ``count`` numbers this is the ``most`` and the ``total``. NaN
 * where a number is not finite. */
static void unit(strip *to, __m512 most, __m512 total, int64_t count, int digits) {
    const float split = digits == 2 ? 0x1p8f : 0x1p16f;
    const __m512 reach = _mm512_max_ps(_mm512_min_ps(most, total * (WIDE / (float)count)),
                                       _mm512_set1_ps(0x1p-100f));
    /* For sums whose last digit weighs as much as one of ours, or of three as that before it. */
    const __m512 unit = reach / (REACH * (digits == 2 ? split : split / 16));
    const __mmask16 finite = _mm512_cmplt_ps_mask(most, _mm512_set1_ps(INFINITY));
    _mm512_storeu_ps(to->raise, REACH * split / reach);
    _mm512_storeu_ps(to->unit, _mm512_mask_blend_ps(finite, _mm512_set1_ps(NAN), unit));
    to->any = !!_mm512_mask_cmplt_ps_mask(finite, reach, most);
}

static inline void grow(__m512 *most, __m512 *total, __m512 x) {
    x = _mm512_abs_ps(x);
    /* As whole numbers, of which NaN is the highest. */
    *most = (__m512)_mm512_max_epu32((__m512i)*most, (__m512i)x);
    *total += x;
}

/* Those of some strips from (row, k) on. The memory that is AHEAD is fetched meanwhile. */
static void measure(int8_t *to, int64_t bytes, matrix x, int64_t row, int64_t k, int64_t rows,
                    int64_t depth, int digits) {
    enum { MANY = PANEL / SIDE, AHEAD = 4 };
    __m512 most[MANY], total[MANY];
    memset(most, 0, sizeof most), memset(total, 0, sizeof total);
    if (x.along == 1) for (int64_t i = 0; row + i < rows; i++) {
        __m512 high = _mm512_setzero_ps(), sum = high;
        for (int64_t at = k; at < depth; at += 16) {
            _mm_prefetch(x.at + (row + i + AHEAD) * x.next + at, _MM_HINT_T1);
            grow(&high, &sum, sixteen(x, 1, row + i, at, rows, depth));
        }
        const uint32_t found = _mm512_reduce_max_epu32((__m512i)high);
        memcpy((float *)most + i, &found, sizeof found);
        ((float *)total)[i] = _mm512_reduce_add_ps(sum);
    } else for (int64_t at = k; at < depth; at++)
        for (int64_t i = 0; row + SIDE * i < rows; i++) {
            _mm_prefetch(x.at + row + SIDE * i + (at + AHEAD) * x.along, _MM_HINT_T1);
            grow(most + i, total + i, sixteen(x, 0, row + SIDE * i, at, rows, depth));
        }
    for (int64_t i = 0; row + SIDE * i < rows; i++)
        unit((strip *)(to + i * bytes), most[i], total[i], depth - k, digits);
}

/* Whole numbers, a digit in each byte: that of the least weight first, each between -128 and 127. */
static inline __m512i whole(__m512 x, __m512 raise, int digits) {
    const __m512i half = _mm512_set1_epi32(0x80808080);
    const __m512i raised = _mm512_add_epi32(_mm512_cvtps_epi32(x * raise), half);
    const __m512i found = _mm512_xor_si512(raised, half);
    return digits == 2 ? _mm512_slli_epi32(found, 8) : found;
}

/* From 64 whole numbers of a row the digits of each weight, side by side; to[0] is the one beyond. */
static inline void lined(__m512i to[4], const __m512i x[4]) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i places = _mm512_mullo_epi32(lane, _mm512_set1_epi32(0x10101010));
    const __m512i top = _mm512_add_epi32(places, _mm512_set1_epi32(0x0f0b0703));
    const __m512i middle = _mm512_add_epi32(places, _mm512_set1_epi32(0x0e0a0602));
    const __m512i outer = _mm512_mask_sub_epi32(top, 0xff00, top, _mm512_set1_epi32(0x03030303));
    const __m512i inner = _mm512_mask_sub_epi32(middle, 0xff00, middle, _mm512_set1_epi32(0x01010101));
    const __m512i a = _mm512_permutex2var_epi8(x[0], outer, x[1]);
    const __m512i b = _mm512_permutex2var_epi8(x[2], outer, x[3]);
    const __m512i c = _mm512_permutex2var_epi8(x[0], inner, x[1]);
    const __m512i d = _mm512_permutex2var_epi8(x[2], inner, x[3]);
    to[0] = _mm512_shuffle_i64x2(a, b, 0x44), to[3] = _mm512_shuffle_i64x2(a, b, 0xee);
    to[1] = _mm512_shuffle_i64x2(c, d, 0x44), to[2] = _mm512_shuffle_i64x2(c, d, 0xee);
}

/* The same from four times 16 rows: of each row the four that follow each other along the sum. */
static inline void paired(__m512i to[4], const __m512i x[4]) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i places = _mm512_mullo_epi32(lane, _mm512_set1_epi32(0x04040404));
    for (int i = 0; i < 2; i++) {
        const __m512i two = _mm512_add_epi32(places, _mm512_set1_epi32(i ? 0x41014000 : 0x43034202));
        const __m512i a = _mm512_permutex2var_epi8(x[0], two, x[1]);
        const __m512i b = _mm512_permutex2var_epi8(x[2], two, x[3]);
        to[2 * i + 1] = _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16));
        to[2 * i] = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b);
    }
}

/* One step of a strip, from (row, k), for the left or the right side of a product; ``lies``: along its
 * sum in memory. What will be needed ``soon`` is fetched. */
static inline __attribute__((always_inline)) void
cut(strip *to, int64_t step, int64_t steps, matrix x, int lies, int64_t row, int64_t k, int64_t rows,
    int64_t depth, int digits, int right, const int8_t *soon) {
    __m512 found[4][SIDE];
    __m512i beyond = _mm512_setzero_si512();
    for (int i = 0; i < SIDE; i++) {
        __m512i numbers[4], weights[4];
        const __m512 raise = lies ? _mm512_set1_ps(to->raise[i]) : _mm512_loadu_ps(to->raise);
        for (int j = 0; j < 4; j++) {
            const __m512 some = lies ? sixteen(x, 1, row + i, k + 16 * j, rows, depth)
                                     : sixteen(x, 0, row, k + 4 * i + j, rows, depth);
            numbers[j] = whole(some, raise, digits);
        }
        if (lies) lined(weights, numbers); else paired(weights, numbers);
        for (int j = 0; j < 4; j++) found[j][i] = (__m512)weights[j];
        beyond |= weights[0];
        for (int j = 0; j < digits; j++) __builtin_prefetch(soon + TILE * j + DEEP * i, 1);
    }
    to->wide[step] = to->any && _mm512_test_epi32_mask(beyond, beyond);
    for (int j = to->wide[step] ? 0 : 1; j <= digits; j++) {
        int8_t *at = digit(to, step, steps, digits, j);
        if (lies == right) turn(found[j]);
        for (int i = 0; i < SIDE; i++) _mm512_storeu_ps(at + DEEP * i, found[j][i]);
    }
}

/* The strips of ``rows`` rows, some at a time, in the order in which each matrix lies in memory. */
static void strips(int8_t *to, const stack *all, int64_t row, int64_t rows, int64_t k, int64_t depth,
                   int64_t bytes, int digits, int right) {
    const int64_t steps = parts(depth, DEEP);
    while (rows > 0) {
        const spot first = place(all, row);
        const matrix x = all->part[first.part];
        const int64_t some = least(least(rows, PANEL), x.rows - first.row), many = parts(some, SIDE);
        const int64_t bottom = first.row + some;
        measure(to, bytes, x, first.row, k, bottom, k + depth, digits);
        for (int64_t i = 0; i < steps * many; i++) {
            const int lies = x.along == 1;
            const int64_t at = lies ? i / steps : i % many, step = lies ? i % steps : i / many;
            strip *here = (strip *)(to + at * bytes);
            const int8_t *soon = digit(here, step, steps, digits, 1) + (lies ? digits * TILE : bytes);
#define CUT(lies) \
            cut(here, step, steps, x, lies, first.row + SIDE * at, k + DEEP * step, bottom, k + depth, \
                digits, right, soon)
            if (lies) CUT(1); else CUT(0);
        }
        to += many * bytes, row += some, rows -= some;
    }
}
