// Products of few rows with weights as oneDNN packs them for AVX512-BF16. oneDNN itself reads such weights at two thirds
// of the memory's speed when rows are few; here nothing but the memory limits. A row's result does not depend on how
// many others there are.

#include "native.h"

#include <cstring>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512BF16__)
#define PRODUCT_ROWS 16  // with more rows oneDNN is as fast

constexpr int PANEL = 64;     // output features that lie together: packed as (out / PANEL, in / 2, PANEL, 2)
constexpr int VECTORS = 4;    // of 16 output features
constexpr int64_t DEPTH = 256;  // input features of a panel that stay in the first cache while all rows use them
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
        const int64_t live = width - column < PANEL ? width - column : PANEL;  // the last panel may be filled up
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < live; i += 16) {
                __m512 sum = _mm512_load_ps(sums + row * PANEL + i);
                if (bias) sum = _mm512_add_ps(sum, widened(bias + column + i));
                const __m256bh rounded = _mm512_cvtneps_pbh(sum);
                std::memcpy(out + row * width + column + i, &rounded, sizeof rounded);
            }
    }
}

#else
#define PRODUCT_ROWS 0

void multiply(uint16_t*, const uint16_t*, const uint16_t*, const uint16_t*, int64_t, int64_t, int64_t) {}
#endif

}  // namespace

// The most rows that `multiply_packed` takes: 0 on a processor it was not written for.
extern "C" int64_t most_rows() { return PRODUCT_ROWS; }

// out (rows, width) = x (rows, in) · weights + bias, bfloat16, sums in float32. `in` is a multiple of 2, `width` of 16.
extern "C" void multiply_packed(bf16* out, const bf16* x, const bf16* packed, const bf16* bias, int64_t rows,
                                int64_t in, int64_t width) {
    multiply((uint16_t*)out, (const uint16_t*)x, (const uint16_t*)packed, (const uint16_t*)bias, rows, in, width);
}
