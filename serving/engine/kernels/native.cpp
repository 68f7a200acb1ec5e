// The CPU kernels that PyTorch has no fast form of: one pass over memory each, for the small number of rows that
// decoding has. Written with the compiler's portable vectors; no PyTorch headers, so that it compiles in a second.
// Values are float or bfloat16 (T), sums are always float. `reference.py` says what each one computes.

#include "native.h"

#include <cmath>
#include <cstring>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

namespace {

constexpr int W = 16;  // lanes of a vector; dimensions are multiples of it, the Python side checks
typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t H __attribute__((vector_size(32)));

inline F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline F load(const bf16* p) {
    H h;
    std::memcpy(&h, p, sizeof h);
    return (F)(__builtin_convertvector(h, U) << 16);
}

inline void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }

inline void store(bf16* p, F v) {  // to nearest, ties to even
    U u = (U)v;
    H h = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, H);
    std::memcpy(p, &h, sizeof h);
}

template <class T>
inline F rounded(F v);  // what remains of v after a trip through T: PyTorch rounds after every operation
template <>
inline F rounded<float>(F v) {
    return v;
}
template <>
inline F rounded<bf16>(F v) {
    U u = (U)v;
    return (F)((u + 0x7fff + ((u >> 16) & 1)) & 0xffff0000u);
}

inline float sum(F v) {
    v += SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v[0];
}

// The sums of four vectors, at the price of less than two.
inline void sum(const F* v, float* out) {
    F ab = SHUFFLE(v[0], v[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SHUFFLE(v[0], v[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    F cd = SHUFFLE(v[2], v[3], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SHUFFLE(v[2], v[3], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    F all = SHUFFLE(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
            SHUFFLE(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    all += SHUFFLE(all, all, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    all += SHUFFLE(all, all, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    for (int i = 0; i < 4; i++) out[i] = all[4 * i];
}

// Factors<T> are STEP values of a dot product; `multiply_add` adds the products of two to a vector of sums.
template <class T>
struct Factors {
    static constexpr int STEP = W;
    F v;
    explicit Factors(const T* p, int = W) : v(load(p)) {}
};

template <class T>
inline F multiply_add(F sums, const Factors<T>& a, const Factors<T>& b) {
    return sums + a.v * b.v;
}

#if defined(__AVX512BF16__)
template <>
struct Factors<bf16> {
    static constexpr int STEP = 2 * W;
    __m512bh v;
    explicit Factors(const bf16* p, int count = STEP)  // count: STEP, or W at the end of a row
        : v((__m512bh)(count < STEP ? _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i*)p))
                                    : _mm512_loadu_si512(p))) {}
};

template <>
inline F multiply_add(F sums, const Factors<bf16>& a, const Factors<bf16>& b) {
    return (F)_mm512_dpbf16_ps((__m512)sums, a.v, b.v);
}
#endif

// e^x, relative error below 2e-7 (Cephes' expf: range reduction by ln 2, then a polynomial of degree 5).
inline F exp(F x) {
    x = x < -87.0f ? F{} - 87.0f : x;
    x = x > 88.0f ? F{} + 88.0f : x;
    const float magic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
    F n = (x * 1.44269504f + magic) - magic;
    F r = x - n * 0.693359375f + n * 2.12194440e-4f;
    F p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
           1.6666665459e-1f) * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    I shift = (__builtin_convertvector(n, I) + 127) << 23;
    return p * (F)shift;
}

template <class T>
void rms_norm_row(T* out, const T* x, const T* weight, int dim, float epsilon) {
    F squares{};
    for (int i = 0; i < dim; i += W) {
        F v = load(x + i);
        squares += v * v;
    }
    float scale = 1.0f / std::sqrt(sum(squares) / dim + epsilon);
    for (int i = 0; i < dim; i += W) store(out + i, rounded<T>(load(x + i) * scale) * load(weight + i));
}

template <class T>
void add_rms_norm(T* out, T* x, const T* add, const T* weight, int64_t rows, int dim, float epsilon) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        T* here = x + row * dim;
        if (add)
            for (int i = 0; i < dim; i += W) store(here + i, load(here + i) + load(add + row * dim + i));
        rms_norm_row(out + row * dim, here, weight, dim, epsilon);
    }
}

template <class T>
void norm_and_rotate(T* x, const T* weight, const T* cos, const T* sin, int64_t rows, int64_t stride, int heads, int dim,
            float epsilon) {
    const int half = dim / 2;
#pragma omp parallel for collapse(2) schedule(static) if (rows * heads > 8)
    for (int64_t row = 0; row < rows; row++)
        for (int head = 0; head < heads; head++) {
            T* here = x + row * stride + head * dim;
            if (weight) rms_norm_row(here, here, weight + head * dim, dim, epsilon);
            const T *c = cos + row * dim, *s = sin + row * dim;
            for (int i = 0; i < half; i += W) {
                F low = load(here + i), high = load(here + half + i);
                store(here + i, rounded<T>(low * load(c + i)) - rounded<T>(high * load(s + i)));
                store(here + half + i, rounded<T>(high * load(c + half + i)) + rounded<T>(low * load(s + half + i)));
            }
        }
}

template <class T>
void silu_and_multiply(T* out, const T* gate_up, int64_t rows, int dim) {
#pragma omp parallel for schedule(static) if (rows * dim > 4096)
    for (int64_t task = 0; task < rows * (dim / W); task++) {
        int64_t row = task / (dim / W), i = task % (dim / W) * W;
        const T* gate = gate_up + row * 2 * dim + i;
        F g = load(gate);
        store(out + row * dim + i, rounded<T>(g / (1.0f + exp(-g))) * load(gate + dim));
    }
}

template <class T>
void store_kv(T* kept, const T* x, const int64_t* slots, int64_t rows, int64_t stride, int heads, int64_t tokens,
              int dim) {
    for (int64_t row = 0; row < rows; row++)
        for (int head = 0; head < heads; head++)
            std::memcpy(kept + (head * tokens + slots[row]) * dim, x + row * stride + head * dim, dim * sizeof(T));
}

// scores (GROUP, stride) = scale · query (GROUP, dim) · the keys at `slots`, four sums at a time.
template <class T, int GROUP>
void score(float* scores, int64_t stride, const T* query, const T* keys, const int64_t* slots, int64_t count, int dim,
           float scale) {
    constexpr int TOKENS = 4 / GROUP, STEP = Factors<T>::STEP;
    for (int64_t t = 0; t < count; t += TOKENS) {
        const T* key[TOKENS];
        for (int j = 0; j < TOKENS; j++) key[j] = keys + slots[t + j < count ? t + j : t] * dim;
        F sums[4] = {};
        for (int i = 0; i < dim; i += STEP) {
            const int here = dim - i < STEP ? dim - i : STEP;
            for (int h = 0; h < GROUP; h++) {
                const Factors<T> q(query + h * dim + i, here);
                for (int j = 0; j < TOKENS; j++)
                    sums[j * GROUP + h] = multiply_add(sums[j * GROUP + h], Factors<T>(key[j] + i, here), q);
            }
        }
        float found[4];
        sum(sums, found);
        for (int j = 0; j < TOKENS && t + j < count; j++)
            for (int h = 0; h < GROUP; h++) scores[h * stride + t + j] = found[j * GROUP + h] * scale;
    }
}

// s (padded), the scores of `count` tokens: in place e^(s - top). Returns what makes their sum 1.
inline float soften(float* s, int64_t count, int64_t padded, float softcap, const float* sink) {
    if (softcap > 0)
        for (int64_t t = 0; t < count; t++) s[t] = std::tanh(s[t] / softcap) * softcap;
    float top = sink ? *sink : -INFINITY;
    for (int64_t t = 0; t < count; t++) top = s[t] > top ? s[t] : top;
    for (int64_t t = count; t < padded; t++) s[t] = -INFINITY;
    F total{};
    for (int64_t t = 0; t < padded; t += W) {
        F x = load(s + t);
        F e = exp(x - top);
        e = x == -INFINITY ? F{} : e;
        store(s + t, e);
        total += e;
    }
    return 1.0f / (sum(total) + (sink ? std::exp(*sink - top) : 0.0f));
}

// out (GROUP, dim), columns of PARTS vectors = inverse · weights (GROUP, stride) · the values at `slots`.
template <class T, int GROUP, int PARTS>
void gather(T* out, const float* weights, int64_t stride, const T* values, const int64_t* slots, int64_t count, int dim,
            const float* inverse) {
    F a[GROUP][PARTS] = {};
    for (int64_t t = 0; t < count; t++) {
        const T* value = values + slots[t] * dim;
        for (int p = 0; p < PARTS; p++) {
            const F v = load(value + p * W);
            for (int h = 0; h < GROUP; h++) a[h][p] += weights[h * stride + t] * v;
        }
    }
    for (int h = 0; h < GROUP; h++)
        for (int p = 0; p < PARTS; p++) store(out + h * dim + p * W, a[h][p] * inverse[h]);
}

// One query over the tokens its sequence has kept; GROUP heads share each key and value they load.
template <class T, int GROUP>
void attend_heads(T* out, const T* query, const T* keys, const T* values, const int64_t* slots, int64_t count,
                  int key_dim, int value_dim, float scale, float softcap, const float* sinks,
                  std::vector<float>& scratch) {
    const int64_t padded = (count + W - 1) / W * W;
    scratch.resize(GROUP * padded);
    float *weights = scratch.data(), inverse[GROUP];
    score<T, GROUP>(weights, padded, query, keys, slots, count, key_dim, scale);
    for (int h = 0; h < GROUP; h++)
        inverse[h] = soften(weights + h * padded, count, padded, softcap, sinks ? sinks + h : nullptr);
    constexpr int PARTS = 4;
    int d = 0;
    for (; d + PARTS * W <= value_dim; d += PARTS * W)
        gather<T, GROUP, PARTS>(out + d, weights, padded, values + d, slots, count, value_dim, inverse);
    for (; d < value_dim; d += W)
        gather<T, GROUP, 1>(out + d, weights, padded, values + d, slots, count, value_dim, inverse);
}

template <class T>
void attend_group(T* out, const T* query, const T* keys, const T* values, const int64_t* slots, int64_t count,
                  int group, int key_dim, int value_dim, float scale, float softcap, const float* sinks,
                  std::vector<float>& scratch) {
    for (int head = 0; head < group;) {
        const int left = group - head, now = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        const auto attend = now == 4 ? attend_heads<T, 4> : now == 2 ? attend_heads<T, 2> : attend_heads<T, 1>;
        attend(out + head * value_dim, query + head * key_dim, keys, values, slots, count, key_dim, value_dim, scale,
               softcap, sinks ? sinks + head : nullptr, scratch);
        head += now;
    }
}

template <class T>
void attend(T* out, const T* query, const T* keys, const T* values, const int64_t* const* slots,
            const int32_t* lengths, int64_t rows, int64_t query_stride, int heads, int kv_heads, int64_t tokens,
            int key_dim, int value_dim, int64_t window, float scale, float softcap, const float* sinks) {
    const int group = heads / kv_heads;
#pragma omp parallel
    {
        std::vector<float> scratch;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t row = 0; row < rows; row++)
            for (int head = 0; head < kv_heads; head++) {
                const int64_t length = lengths[row];
                const int64_t first = window > 0 && length > window ? length - window : 0;
                attend_group(out + (row * heads + head * group) * value_dim,
                             query + row * query_stride + head * group * key_dim, keys + head * tokens * key_dim,
                             values + head * tokens * value_dim, slots[row] + first, length - first, group, key_dim,
                             value_dim, scale, softcap, sinks ? sinks + head * group : nullptr, scratch);
            }
    }
}

// Causal softmax in place, row q of `count` seeing the first length - count + 1 + q of `length` columns.
template <class T>
void causal_softmax(T* scores, int64_t matrices, int64_t count, int64_t length, float scale) {
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t m = 0; m < matrices; m++)
        for (int64_t q = 0; q < count; q++) {
            T* s = scores + (m * count + q) * length;
            const int64_t seen = length - count + 1 + q, whole = seen / W * W;
            float tail[W], top = -INFINITY;
            for (int64_t t = whole; t < whole + W; t++) {
                float v = -INFINITY;
                if (t < seen) {
                    if constexpr (sizeof(T) == 4)
                        v = ((const float*)s)[t];
                    else {
                        uint32_t bits = (uint32_t)((const uint16_t*)s)[t] << 16;
                        std::memcpy(&v, &bits, 4);
                    }
                }
                tail[t - whole] = v;
                top = v > top ? v : top;
            }
            F high{};
            high += top;
            for (int64_t t = 0; t < whole; t += W) {
                F v = load(s + t);
                high = v > high ? v : high;
            }
            for (int i = 0; i < W; i++) top = high[i] > top ? high[i] : top;
            F total{}, last = load(tail);
            for (int64_t t = 0; t < whole; t += W) total += exp((load(s + t) - top) * scale);
            F rest = exp((last - top) * scale);
            rest = last == -INFINITY ? F{} : rest;
            const float inverse = 1.0f / sum(total + rest);
            for (int64_t t = 0; t < whole; t += W) store(s + t, exp((load(s + t) - top) * scale) * inverse);
            T out[W];
            store(out, rest * inverse);
            const int64_t end = whole + W < length ? whole + W : length;
            std::memcpy(s + whole, out, (end - whole) * sizeof(T));
            if (end < length) std::memset(s + end, 0, (length - end) * sizeof(T));
        }
}

// low (ROWS, BUNDLE) = strength · x aᵀ: each vector of x and of a is read once for all.
template <class T, int ROWS, int BUNDLE>
inline void shrink(float* low, int64_t low_stride, const T* x, const T* a, int64_t in, float strength) {
    constexpr int STEP = Factors<T>::STEP;
    F s[ROWS][BUNDLE] = {};
    for (int64_t i = 0; i < in; i += STEP) {
        const int here = in - i < STEP ? (int)(in - i) : STEP;
        for (int r = 0; r < ROWS; r++) {
            const Factors<T> u(x + r * in + i, here);
            for (int j = 0; j < BUNDLE; j++) s[r][j] = multiply_add(s[r][j], Factors<T>(a + j * in + i, here), u);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < BUNDLE; j++) low[r * low_stride + j] = sum(s[r][j]) * strength;
}

// out (ROWS, PARTS vectors) += low (ROWS, rank) · b
template <class T, int ROWS, int PARTS>
inline void expand(T* out, int64_t out_stride, const float* low, const T* b, int64_t width, int64_t rank) {
    F s[ROWS][PARTS] = {};
    for (int64_t k = 0; k < rank; k++) {
        F v[PARTS];
        for (int p = 0; p < PARTS; p++) v[p] = load(b + k * width + p * W);
        for (int r = 0; r < ROWS; r++)
            for (int p = 0; p < PARTS; p++) s[r][p] += low[r * rank + k] * v[p];
    }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PARTS; p++) {
            T* to = out + r * out_stride + p * W;
            store(to, load(to) + s[r][p]);
        }
}

template <class T>
void add_lora(T* out, const T* x, int64_t in, int64_t out_stride, const Entry* entries, int64_t num_entries,
              const Member* members, int64_t num_members) {
    struct Low {
        const Entry* entry;
        const Member* member;
        int64_t rank, at;  // first of its values in `low`: (rows, rank)
        int64_t units;     // bundles of ranks of all before it
    };
    constexpr int BUNDLE = 4;  // ranks that share each load of x
    constexpr int ROWS = 4;    // rows that share each load of a and b
    constexpr int PARTS = 16;  // vectors of a row of B that are read together: long runs are what memory gives fast
    std::vector<Low> lows;
    int64_t size = 0, units = 0;
    for (int64_t m = 0; m < num_members; m++)
        for (int64_t e = 0; e < num_entries; e++) {
            const int64_t rank = members[m].rank[entries[e].slot];
            if (!rank) continue;
            lows.push_back({entries + e, members + m, rank, size, units});
            size += rank * (entries[e].end - entries[e].start);
            units += (rank + BUNDLE - 1) / BUNDLE;
        }
    if (lows.empty()) return;
    std::vector<float> low(size);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < units; unit++) {
            size_t l = lows.size() - 1;
            while (lows[l].units > unit) l--;
            const Low& here = lows[l];
            const int64_t k = (unit - here.units) * BUNDLE;
            const int count = here.rank - k < BUNDLE ? (int)(here.rank - k) : BUNDLE;
            const T* a = (const T*)here.member->a[here.entry->slot] + k * in;
            const float strength = (float)here.entry->strength;
            float* to = low.data() + here.at + k;
            int64_t row = here.entry->start;
            for (; count == BUNDLE && row + ROWS <= here.entry->end; row += ROWS, to += ROWS * here.rank)
                shrink<T, ROWS, BUNDLE>(to, here.rank, x + row * in, a, in, strength);
            for (; row < here.entry->end; row++, to += here.rank)
                if (count == BUNDLE)
                    shrink<T, 1, BUNDLE>(to, here.rank, x + row * in, a, in, strength);
                else
                    for (int j = 0; j < count; j++) shrink<T, 1, 1>(to + j, here.rank, x + row * in, a + j * in, in, strength);
        }
        for (int64_t m = 0; m < num_members; m++) {
            const Member& member = members[m];
#pragma omp for schedule(static) nowait
            for (int64_t j = 0; j < member.width; j += PARTS * W) {
                const int parts = member.width - j >= PARTS * W ? PARTS : (int)((member.width - j) / W);
                for (const Low& here : lows) {
                    if (here.member != &member) continue;
                    const T* b = (const T*)member.b[here.entry->slot] + j;
                    const float* l = low.data() + here.at;
                    T* to = out + here.entry->start * out_stride + member.column + j;
                    int64_t rows = here.entry->end - here.entry->start;
                    for (; parts == PARTS && rows >= ROWS; rows -= ROWS, l += ROWS * here.rank, to += ROWS * out_stride)
                        for (int p = 0; p < PARTS; p += PARTS / ROWS)
                            expand<T, ROWS, PARTS / ROWS>(to + p * W, out_stride, l, b + p * W, member.width, here.rank);
                    for (; rows > 0; rows--, l += here.rank, to += out_stride)
                        if (parts == PARTS)
                            expand<T, 1, PARTS>(to, out_stride, l, b, member.width, here.rank);
                        else
                            for (int p = 0; p < parts; p++)
                                expand<T, 1, 1>(to + p * W, out_stride, l, b + p * W, member.width, here.rank);
                }
            }
        }
    }
}

}  // namespace

#define EXPORT(T, suffix)                                                                                             \
    extern "C" void add_rms_norm_##suffix(T* out, T* x, const T* add, const T* weight, int64_t rows, int dim,          \
                                          float epsilon) {                                                             \
        add_rms_norm(out, x, add, weight, rows, dim, epsilon);                                                         \
    }                                                                                                                  \
    extern "C" void norm_and_rotate_##suffix(T* x, const T* weight, const T* cos, const T* sin, int64_t rows, int64_t stride,   \
                                    int heads, int dim, float epsilon) {                                               \
        norm_and_rotate(x, weight, cos, sin, rows, stride, heads, dim, epsilon);                                                \
    }                                                                                                                  \
    extern "C" void silu_and_multiply_##suffix(T* out, const T* gate_up, int64_t rows, int dim) {                               \
        silu_and_multiply(out, gate_up, rows, dim);                                                                             \
    }                                                                                                                  \
    extern "C" void store_kv_##suffix(T* kept, const T* x, const int64_t* slots, int64_t rows, int64_t stride,         \
                                      int heads, int64_t tokens, int dim) {                                            \
        store_kv(kept, x, slots, rows, stride, heads, tokens, dim);                                                    \
    }                                                                                                                  \
    extern "C" void attend_##suffix(T* out, const T* query, const T* keys, const T* values,                            \
                                    const int64_t* const* slots, const int32_t* lengths, int64_t rows,                 \
                                    int64_t query_stride, int heads, int kv_heads, int64_t tokens, int key_dim,        \
                                    int value_dim, int64_t window, float scale, float softcap, const float* sinks) {   \
        attend(out, query, keys, values, slots, lengths, rows, query_stride, heads, kv_heads, tokens, key_dim,         \
               value_dim, window, scale, softcap, sinks);                                                              \
    }                                                                                                                  \
    extern "C" void causal_softmax_##suffix(T* scores, int64_t matrices, int64_t count, int64_t length, float scale) { \
        causal_softmax(scores, matrices, count, length, scale);                                                        \
    }                                                                                                                  \
    extern "C" void add_lora_##suffix(T* out, const T* x, int64_t in, int64_t out_stride, const Entry* entries,        \
                                      int64_t num_entries, const Member* members, int64_t num_members) {               \
        add_lora(out, x, in, out_stride, entries, num_entries, members, num_members);                                  \
    }

EXPORT(float, float32)
EXPORT(bf16, bfloat16)
