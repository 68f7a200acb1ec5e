// What the compiled kernels of one library know of each other.

#pragma once
#include <cstdint>

struct bf16 {
    uint16_t bits;
};

struct Entry {  // one adapter on some rows of the step
    int64_t start, end, slot;
    double strength;
};

struct Member {  // one linear layer of a joined product; a, b, rank by slot
    int64_t column, width;
    const int64_t *a, *b, *rank;
};

extern "C" {
void add_rms_norm_bfloat16(bf16* out, bf16* x, const bf16* add, const bf16* weight, int64_t rows, int dim,
                           float epsilon);
void norm_and_rotate_bfloat16(bf16* x, const bf16* weight, const bf16* cos, const bf16* sin, int64_t rows,
                              int64_t stride, int heads, int dim, float epsilon);
void silu_and_multiply_bfloat16(bf16* out, const bf16* gate_up, int64_t rows, int dim);
void store_kv_bfloat16(bf16* kept, const bf16* x, const int64_t* slots, int64_t rows, int64_t stride, int heads,
                       int64_t tokens, int dim);
void attend_bfloat16(bf16* out, const bf16* query, const bf16* keys, const bf16* values, const int64_t* const* slots,
                     const int32_t* lengths, int64_t rows, int64_t query_stride, int heads, int kv_heads,
                     int64_t tokens, int key_dim, int value_dim, int64_t window, float scale, float softcap,
                     const float* sinks);
void add_lora_bfloat16(bf16* out, const bf16* x, int64_t in, int64_t out_stride, const Entry* entries,
                       int64_t num_entries, const Member* members, int64_t num_members);
void multiply_packed(bf16* out, const bf16* x, const bf16* packed, const bf16* bias, int64_t rows, int64_t in,
                     int64_t width);
void multiply_4bit_packed(bf16* out, const bf16* x, const uint16_t* packed, const bf16* scales, const bf16* bias,
                          int64_t rows, int64_t in, int64_t width);
}
