// All decoder layers of one decoding step in one call: the kernels of the other files in the order of FusedLayer, without
// the interpreter between them. bfloat16; `stack.py` builds the structs.

#include "native.h"

namespace {

struct Product {
    const void* packed;
    const bf16 *scales, *bias;  // scales: of weights of 4 bits, else null
    int64_t in, width;
    const Member* members;  // of the adapters in the bank
    int64_t num_members;
};

struct Layer {
    Product qkv, out, gate_up, down;
    const bf16 *input_norm, *mlp_norm, *head_norm;  // head_norm: of query and key heads, or null
    bf16 *keys, *values;                            // (kv_heads, tokens, head_dim)
    double input_epsilon, mlp_epsilon, head_epsilon;
    double scale;    // of the scores
    int64_t window;  // 0: none
};

struct Stack {
    const Layer* layers;
    int64_t num_layers, heads, kv_heads, head_dim, tokens;
};

struct Step {
    bf16* hidden;  // (rows, hidden size), in place
    const bf16 *cos, *sin;
    const int64_t* slots;             // (rows,): where new keys and values go
    const int64_t* const* addresses;  // (rows,): of each row's slots, in order
    const int32_t* lengths;
    const Entry* entries;
    int64_t num_entries, rows;
    bf16* scratch;
};

void multiply(bf16* out, const bf16* x, const Product& product, const Step& step) {
    if (product.scales)
        multiply_4bit_packed(out, x, (const uint16_t*)product.packed, product.scales, product.bias, step.rows,
                             product.in, product.width);
    else
        multiply_packed(out, x, (const bf16*)product.packed, product.bias, step.rows, product.in, product.width);
    if (step.num_entries && product.num_members)
        add_lora_bfloat16(out, x, product.in, product.width, step.entries, step.num_entries, product.members,
                          product.num_members);
}

}  // namespace

extern "C" void decode_layers(const Stack* stack, const Step* step) {
    const int64_t rows = step->rows, dim = stack->head_dim;
    const int heads = (int)stack->heads, kv_heads = (int)stack->kv_heads;
    const Layer& first = stack->layers[0];
    const int64_t hidden = first.qkv.in, mlp = first.down.in;
    bf16* x = step->scratch;                       // what a product reads
    bf16* added = x + rows * hidden;               // what is added to the hidden states next
    bf16* qkv = added + rows * hidden;
    bf16* attended = qkv + rows * first.qkv.width;
    bf16* gate_up = attended + rows * heads * dim;
    bf16* gated = gate_up + rows * first.gate_up.width;
    const bf16* from_before = nullptr;
    for (int64_t i = 0; i < stack->num_layers; i++) {
        const Layer& layer = stack->layers[i];
        add_rms_norm_bfloat16(x, step->hidden, from_before, layer.input_norm, rows, (int)hidden,
                              (float)layer.input_epsilon);
        multiply(qkv, x, layer.qkv, *step);
        const int64_t stride = layer.qkv.width;
        const bf16 *keys = qkv + heads * dim, *values = keys + kv_heads * dim;
        norm_and_rotate_bfloat16(qkv, layer.head_norm, step->cos, step->sin, rows, stride, heads + kv_heads, (int)dim,
                                 (float)layer.head_epsilon);
        store_kv_bfloat16(layer.keys, keys, step->slots, rows, stride, kv_heads, stack->tokens, (int)dim);
        store_kv_bfloat16(layer.values, values, step->slots, rows, stride, kv_heads, stack->tokens, (int)dim);
        attend_bfloat16(attended, qkv, layer.keys, layer.values, step->addresses, step->lengths, rows, stride, heads,
                        kv_heads, stack->tokens, (int)dim, (int)dim, layer.window, (float)layer.scale, 0.0f, nullptr);
        multiply(added, attended, layer.out, *step);
        add_rms_norm_bfloat16(x, step->hidden, added, layer.mlp_norm, rows, (int)hidden, (float)layer.mlp_epsilon);
        multiply(gate_up, x, layer.gate_up, *step);
        silu_and_multiply_bfloat16(gated, gate_up, rows, (int)mlp);
        multiply(added, gated, layer.down, *step);
        from_before = added;
    }
    // For the sum only: the norm that follows the last layer is the model's own.
    add_rms_norm_bfloat16(x, step->hidden, from_before, first.input_norm, rows, (int)hidden,
                          (float)first.input_epsilon);
}
