// Attention that reads keys in place: a prefix shared by many branches, or a sequence in which most keys are hidden.
// All extents and strides count elements; the last dimension of every tensor is contiguous. Every field of a struct has
// 64 bits, because Python fills it by name from integers (named_fields.h).
#pragma once

#include <cstdint>

namespace mmbdhs {

enum DType : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// One query token for each branch. Branch b sees the first prefix_count[b] prefix keys of its example and the first
// suffix_length[b] keys of its own suffix.
struct SharedPrefix {
    const void* q;         // [branches, q_heads, head_dim]
    const void* k_prefix;  // [kv_heads, prefix_rows, head_dim]
    const void* v_prefix;
    const void* k_suffix;  // [branches, kv_heads, suffix_rows, head_dim]
    const void* v_suffix;
    void* out;                      // [branches, q_heads, head_dim], contiguous
    float* lse;                     // [branches, q_heads], contiguous: natural log of the sum of exp(scores)
    const int32_t* prefix_count;    // [branches]
    const int32_t* suffix_length;   // [branches]
    const int32_t* visible;         // [prefix_keys] the row of each prefix key; null: row i is key i
    const int32_t* example;         // [branches]; null: all branches belong to one example with all prefix keys
    const int32_t* prefix_offsets;  // [examples + 1] where each example's prefix keys begin; null with `example`
    int64_t dtype;                  // DType of q, k, v and out
    int64_t branches, q_heads, kv_heads, head_dim, prefix_rows, prefix_keys, suffix_rows, examples;
    int64_t q_branch, q_head;  // strides
    int64_t kp_head, kp_row, vp_head, vp_row;
    int64_t ks_branch, ks_head, ks_row, vs_branch, vs_head, vs_row;
};

// Query i of batch row n sees the keys whose `visible` is 1; with `causal` only those up to keys - queries + i.
struct Masked {
    const void* q;  // [batch, q_heads, queries, head_dim]
    const void* k;  // [batch, kv_heads, keys, head_dim]
    const void* v;
    void* out;               // [batch, q_heads, queries, head_dim], contiguous
    float* lse;              // [batch, q_heads, queries], contiguous
    const uint8_t* visible;  // [batch, keys] of 0 or 1, contiguous
    int64_t dtype;
    int64_t batch, q_heads, kv_heads, queries, keys, head_dim, causal;
    int64_t q_batch, q_head, q_row;  // strides
    int64_t k_batch, k_head, k_row, v_batch, v_head, v_row;
};

// Whether no length or index of a SharedPrefix leads out of its tensor.
bool lengths_fit(const int32_t* prefix_count, const int32_t* suffix_length, int64_t branches, const int32_t* visible,
                 int64_t prefix_keys, const int32_t* example, const int32_t* prefix_offsets, int64_t examples,
                 int64_t prefix_rows, int64_t suffix_rows);

// A row that sees nothing gets the output 0 and the lse -inf. A key that a row does not see never counts in it, not even
// if the key or its value is NaN or infinite. Scores are scale * q·k, then softcap * tanh(score / softcap) if softcap >
// 0. The arguments must be valid; nothing is checked.
void shared_prefix_attention(const SharedPrefix& arguments, double scale, double softcap, int threads);
void masked_attention(const Masked& arguments, double scale, double softcap, int threads);

// The name of the kernels that run: the most capable ones of the machine, or those that the environment variable
// MMBDHS_ISA names.
const char* instruction_set();

// Multiplies and adds in registers and does nothing else, to measure the machine's peak. Returns the floating-point
// operations done.
double multiply_add_rounds(int64_t rounds);

// The same on the current CUDA device and the given stream (a cudaStream_t), without waiting for it. The lengths and
// indices of a SharedPrefix stay on the device: a branch whose numbers lead out of the tensors gets NaN. `workspace`
// has the size that the first two functions give; it and `out` are aligned to 16 bytes. Throws std::runtime_error if a
// launch fails.
int64_t shared_prefix_attention_workspace(const SharedPrefix& arguments);
int64_t masked_attention_workspace(const Masked& arguments);
void shared_prefix_attention_cuda(const SharedPrefix& arguments, double scale, double softcap, void* workspace,
                                  void* stream);
void masked_attention_cuda(const Masked& arguments, double scale, double softcap, void* workspace, void* stream);

}  // namespace mmbdhs
