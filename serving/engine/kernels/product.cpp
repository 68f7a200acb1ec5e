// Products for AVX512-BF16. With weights as oneDNN packs them, for few rows: oneDNN itself reads them at two thirds of the
// memory's speed then, here nothing but the memory limits. And with weights of 4 bits, for any number of rows: they are
// unpacked once for all. A row's result does not depend on how many others there are.

#include "native.h"

#include <cstdlib>
#include <cstring>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512BF16__)
#define PRODUCT_ROWS 16  // with more rows oneDNN is as fast

constexpr int PANEL = 64;     // output features that lie together: packed as (out / PANEL, in / 2, PANEL, 2)
constexpr int VECTORS = 4;    // of 16 output features
constexpr int64_t DEPTH = 256;  // input features of a panel that stay in the first cache while all rows use them
constexpr int GROUP = 64;       // input features that share a scale and a zero point in 4 bits
constexpr int64_t UNPACKED = 2 * GROUP;  // as DEPTH, beside the inputs and sums of many rows
constexpr int ROWS = 6;       // that share each load of the weights: 24 sums, 4 weights and an input fill the registers

// sums (R, PANEL) += x (R, depth) · panel
template <int R>
inline void accumulate(float* sums, const uint16_t* x, int64_t in, const uint16_t* panel, int64_t depth) {
    __m512 s[R][VECTORS];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) s[r][v] = _mm512_loadu_ps(sums + r * PANEL + v * 16);
    for (int64_t k = 0; k < depth; k += 2, panel += 2 * PANEL) {
        __m512bh w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = (__m512bh)_mm512_loadu_si512(panel + 32 * v);
        for (int r = 0; r < R; r++) {
            int32_t two;
            std::memcpy(&two, x + r * in + k, sizeof two);
            const __m512bh input = (__m512bh)_mm512_set1_epi32(two);
            for (int v = 0; v < VECTORS; v++) s[r][v] = _mm512_dpbf16_ps(s[r][v], w[v], input);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(sums + r * PANEL + v * 16, s[r][v]);
}

inline __m512 widened(const uint16_t* p) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
}

// Twice the sixteen values of 4 bits, -8 to 7: the lookup goes by five bits, and the fifth belongs to the next value.
alignas(64) const uint16_t VALUES[32] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                                         0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                                         0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                                         0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};

// Two input features of a panel: each 16 bits of `packed` hold four values, one of each vector.
inline void unpack(__m512i* w, const uint16_t* packed, __m512i table) {
    const __m512i four = _mm512_loadu_si512(packed);
    w[0] = _mm512_permutexvar_epi16(four, table);
    w[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(four, 4), table);
    w[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(four, 8), table);
    w[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(four, 12), table);
}

// `depth` input features of a panel, for more rows than share a load of the weights.
inline void unpack(uint16_t* unpacked, const uint16_t* packed, int64_t depth) {
    const __m512i table = _mm512_load_si512(VALUES);
    for (int64_t k = 0; k < depth; k += 2, packed += PANEL / 2, unpacked += 2 * PANEL) {
        __m512i w[VECTORS];
        unpack(w, packed, table);
        for (int v = 0; v < VECTORS; v++) _mm512_store_si512(unpacked + 32 * v, w[v]);
    }
}

// As above for weights of 4 bits, packed or unpacked: whole groups, each with a scale and a zero point for every output
// feature. totals: of each row's inputs by group, at a distance of `groups` between rows.
template <int R, bool PACKED>
inline void accumulate_groups(float* sums, const uint16_t* x, int64_t in, const uint16_t* weights,
                              const uint16_t* scales, const float* totals, int64_t groups, int64_t depth) {
    const __m512i table = _mm512_load_si512(VALUES);
    constexpr int64_t TWO = PACKED ? PANEL / 2 : 2 * PANEL;  // input features, in `weights`
    for (int64_t k = 0; k < depth; k += GROUP, scales += 2 * PANEL, totals++) {
        __m512 s[R][VECTORS] = {};
        for (int64_t j = 0; j < GROUP; j += 2, weights += TWO) {
            __m512i read[VECTORS];
            if (PACKED)
                unpack(read, weights, table);
            else
                for (int v = 0; v < VECTORS; v++) read[v] = _mm512_load_si512(weights + 32 * v);
            for (int r = 0; r < R; r++) {
                int32_t two;
                std::memcpy(&two, x + r * in + k + j, sizeof two);
                const __m512bh input = (__m512bh)_mm512_set1_epi32(two);
                for (int v = 0; v < VECTORS; v++) s[r][v] = _mm512_dpbf16_ps(s[r][v], (__m512bh)read[v], input);
            }
        }
        for (int v = 0; v < VECTORS; v++) {
            const __m512 scale = widened(scales + 16 * v), zero = widened(scales + PANEL + 16 * v);
            for (int r = 0; r < R; r++) {
                float* to = sums + r * PANEL + v * 16;
                __m512 sum = _mm512_fmadd_ps(s[r][v], scale, _mm512_load_ps(to));
                _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_set1_ps(totals[r * groups]), zero, sum));
            }
        }
    }
}

// out (rows, at most PANEL of `left` columns) = sums (rows, PANEL) + bias, rounded; rows of out are `width` apart.
inline void finish(uint16_t* out, const float* sums, const uint16_t* bias, int64_t rows, int64_t width, int64_t left) {
    const int64_t live = left < PANEL ? left : PANEL;  // the last panel may be filled up
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < live; i += 16) {
            __m512 sum = _mm512_load_ps(sums + row * PANEL + i);
            if (bias) sum = _mm512_add_ps(sum, widened(bias + i));
            const __m256bh rounded = _mm512_cvtneps_pbh(sum);
            std::memcpy(out + row * width + i, &rounded, sizeof rounded);
        }
}

template <class T>
struct Aligned {
    T* data;
    explicit Aligned(int64_t count) : data((T*)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)) {}
    ~Aligned() { std::free(data); }
    Aligned(const Aligned&) = delete;
};

void multiply(uint16_t* out, const uint16_t* x, const uint16_t* packed, const uint16_t* bias, int64_t rows, int64_t in,
              int64_t width) {
    using Accumulate = void (*)(float*, const uint16_t*, int64_t, const uint16_t*, int64_t);
    static constexpr Accumulate of_rows[] = {accumulate<1>, accumulate<2>, accumulate<3>,
                                             accumulate<4>, accumulate<5>, accumulate<6>};
#pragma omp parallel for schedule(static)
    for (int64_t column = 0; column < width; column += PANEL) {
        alignas(64) float sums[PRODUCT_ROWS * PANEL] = {};
        const uint16_t* panel = packed + column * in;
        for (int64_t k = 0; k < in; k += DEPTH) {
            const int64_t depth = in - k < DEPTH ? in - k : DEPTH;
            for (int64_t row = 0; row < rows; row += ROWS) {
                const int64_t count = rows - row < ROWS ? rows - row : ROWS;
                of_rows[count - 1](sums + row * PANEL, x + row * in + k, in, panel + k * PANEL, depth);
            }
        }
        finish(out + column, sums, bias ? bias + column : nullptr, rows, width, width - column);
    }
}

void multiply_4bit(uint16_t* out, const uint16_t* x, const uint16_t* packed, const uint16_t* scales,
                   const uint16_t* bias, int64_t rows, int64_t in, int64_t width) {
    using Accumulate = void (*)(float*, const uint16_t*, int64_t, const uint16_t*, const uint16_t*, const float*,
                                int64_t, int64_t);
    static constexpr Accumulate of_rows[2][ROWS] = {
        {accumulate_groups<1, false>, accumulate_groups<2, false>, accumulate_groups<3, false>,
         accumulate_groups<4, false>, accumulate_groups<5, false>, accumulate_groups<6, false>},
        {accumulate_groups<1, true>, accumulate_groups<2, true>, accumulate_groups<3, true>,
         accumulate_groups<4, true>, accumulate_groups<5, true>, accumulate_groups<6, true>}};
    const bool once = rows <= ROWS;  // then nothing is unpacked twice
    const int64_t groups = in / GROUP;
    std::vector<float> totals(rows * groups);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t g = 0; g < groups; g++) {
                const uint16_t* from = x + row * in + g * GROUP;
                __m512 total = widened(from);
                for (int i = 16; i < GROUP; i += 16) total = _mm512_add_ps(total, widened(from + i));
                totals[row * groups + g] = _mm512_reduce_add_ps(total);
            }
        Aligned<uint16_t> unpacked(UNPACKED * PANEL);
        Aligned<float> sums(rows * PANEL);
#pragma omp for schedule(static)
        for (int64_t column = 0; column < width; column += PANEL) {
            std::memset(sums.data, 0, rows * PANEL * sizeof(float));
            for (int64_t k = 0; k < in; k += UNPACKED) {
                const int64_t depth = in - k < UNPACKED ? in - k : UNPACKED;
                const uint16_t* panel = packed + (column * in + k * PANEL) / 4;
                if (!once) unpack(unpacked.data, panel, depth);
                for (int64_t row = 0; row < rows; row += ROWS) {
                    const int64_t count = rows - row < ROWS ? rows - row : ROWS;
                    of_rows[once][count - 1](sums.data + row * PANEL, x + row * in + k, in, once ? panel : unpacked.data,
                                       scales + 2 * (column * in + k * PANEL) / GROUP,
                                       totals.data() + row * groups + k / GROUP, groups, depth);
                }
            }
            finish(out + column, sums.data, bias ? bias + column : nullptr, rows, width, width - column);
        }
    }
}

#else
#define PRODUCT_ROWS 0

void multiply(uint16_t*, const uint16_t*, const uint16_t*, const uint16_t*, int64_t, int64_t, int64_t) {}
void multiply_4bit(uint16_t*, const uint16_t*, const uint16_t*, const uint16_t*, const uint16_t*, int64_t, int64_t,
                   int64_t) {}
#endif

}  // namespace

// The most rows that `multiply_packed` takes: 0 on a processor it was not written for.
extern "C" int64_t most_rows() { return PRODUCT_ROWS; }

// out (rows, width) = x (rows, in) · weights + bias, bfloat16, sums in float32. `in` is a multiple of 2, `width` of 16.
extern "C" void multiply_packed(bf16* out, const bf16* x, const bf16* packed, const bf16* bias, int64_t rows,
                                int64_t in, int64_t width) {
    multiply((uint16_t*)out, (const uint16_t*)x, (const uint16_t*)packed, (const uint16_t*)bias, rows, in, width);
}

// As multiply_packed, any number of rows, with weights of 4 bits: packed (width / 64, in / 2, 64, 2), of each 16 bits
// four values that lie 16 output features apart; scales (width / 64, in / 64, scale and zero point, 64).
extern "C" void multiply_4bit_packed(bf16* out, const bf16* x, const uint16_t* packed, const bf16* scales,
                                     const bf16* bias, int64_t rows, int64_t in, int64_t width) {
    multiply_4bit((uint16_t*)out, (const uint16_t*)x, packed, (const uint16_t*)scales, (const uint16_t*)bias, rows, in,
                  width);
}
