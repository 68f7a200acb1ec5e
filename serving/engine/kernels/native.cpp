// The CPU kernels that PyTorch has no fast form of: one pass over memory each, for the small number of rows that
// decoding has. Written with the compiler's portable vectors; no PyTorch headers, so that it compiles in a second.
// Values are float or bfloat16 (T), sums are always float. `reference.py` says what each one computes.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int W = 16;  // lanes of a vector; dimensions are multiples of it, the Python side checks
typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t H __attribute__((vector_size(32)));

struct bf16 {
    uint16_t bits;
};

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
    v += __builtin_shuffle(v, I{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    v += __builtin_shuffle(v, I{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
    v += __builtin_shuffle(v, I{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
    v += __builtin_shuffle(v, I{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
    return v[0];
}

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
inline float dot(const float* x, const T* y, int n) {
    F a{}, b{};
    int i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        a += load(x + i) * load(y + i);
        b += load(x + i + W) * load(y + i + W);
    }
    if (i < n) a += load(x + i) * load(y + i);
    return sum(a + b);
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

// One query over the tokens its sequence has kept; the heads of a group share each key and value they load.
template <class T>
void attend_one(T* out, const T* query, const T* keys, const T* values, const int64_t* slots, int64_t first,
                int64_t length, int group, int key_dim, int value_dim, float scale, float softcap, const float* sinks,
                std::vector<float>& scratch) {
    const int64_t count = length - first, padded = (count + W - 1) / W * W;
    scratch.resize(group * (padded + key_dim));
    float *scores = scratch.data(), *q = scores + group * padded;
    for (int i = 0; i < group * key_dim; i += W) store(q + i, load(query + i) * scale);
    for (int64_t t = 0; t < count; t++) {
        const T* key = keys + slots[first + t] * key_dim;
        for (int h = 0; h < group; h++) scores[h * padded + t] = dot(q + h * key_dim, key, key_dim);
    }
    for (int h = 0; h < group; h++) {
        float* s = scores + h * padded;
        if (softcap > 0)
            for (int64_t t = 0; t < count; t++) s[t] = std::tanh(s[t] / softcap) * softcap;
        float top = sinks ? sinks[h] : -INFINITY;
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
        float inverse = 1.0f / (sum(total) + (sinks ? std::exp(sinks[h] - top) : 0.0f));
        T* to = out + h * value_dim;
        for (int d = 0; d < value_dim; d += 4 * W) {
            F a[4] = {};
            const int parts = value_dim - d >= 4 * W ? 4 : (value_dim - d) / W;
            if (parts == 4) {
                for (int64_t t = 0; t < count; t++) {
                    const T* value = values + slots[first + t] * value_dim + d;
                    for (int p = 0; p < 4; p++) a[p] += s[t] * load(value + p * W);
                }
            } else {
                for (int64_t t = 0; t < count; t++) {
                    const T* value = values + slots[first + t] * value_dim + d;
                    for (int p = 0; p < parts; p++) a[p] += s[t] * load(value + p * W);
                }
            }
            for (int p = 0; p < parts; p++) store(to + d + p * W, a[p] * inverse);
        }
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
                attend_one(out + (row * heads + head * group) * value_dim,
                           query + row * query_stride + head * group * key_dim, keys + head * tokens * key_dim,
                           values + head * tokens * value_dim, slots[row], first, length, group,
                           key_dim, value_dim, scale, softcap, sinks ? sinks + head * group : nullptr, scratch);
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

struct Entry {  // one adapter on some rows of the step
    int64_t start, end, slot;
    double strength;
};

struct Member {  // one linear layer of a joined product; a, b, rank by slot
    int64_t column, width;
    const int64_t *a, *b, *rank;
};

// low (ROWS, BUNDLE) = strength · x aᵀ: each vector of x and of a is read once for all.
template <class T, int ROWS, int BUNDLE>
inline void shrink(float* low, int64_t low_stride, const T* x, const T* a, int64_t in, float strength) {
    F s[ROWS][BUNDLE] = {};
    for (int64_t i = 0; i < in; i += W) {
        F v[BUNDLE];
        for (int j = 0; j < BUNDLE; j++) v[j] = load(a + j * in + i);
        for (int r = 0; r < ROWS; r++) {
            const F u = load(x + r * in + i);
            for (int j = 0; j < BUNDLE; j++) s[r][j] += v[j] * u;
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
