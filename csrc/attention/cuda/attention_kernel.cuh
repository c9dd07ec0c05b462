// The kernels that attention.cu launches.
#pragma once

#include "attention/attention.h"
#include "attention/cuda/attention_tile.cuh"

namespace mmbdhs {
namespace {

// The results of the blocks of shared_prefix_kernel: outputs over their own keys alone, and the lse of these.
struct Parts {
    float* out;        // [splits (+ 1 for the suffixes), branches, q_heads, head_dim]
    float* lse;        // [splits (+ 1), branches, q_heads]
    int count;         // splits (+ 1)
    int splits;        // blocks that share the keys of a prefix
    int prefix_tiles;  // of query rows, for each key head
    int suffix_tiles;  // for each branch and key head
};

// The prefix keys of a branch. The count is -1 if the numbers of the branch lead out of the tensors.
__device__ Span prefix_of(const SharedPrefix& a, int64_t branch) {
    int64_t begin = 0, end = a.prefix_keys;
    if (a.example) {
        const int32_t example = a.example[branch];
        if (example < 0 || example >= a.examples) return {0, -1};
        begin = a.prefix_offsets[example];
        end = a.prefix_offsets[example + 1];
    }
    const int64_t count = a.prefix_count[branch];
    const bool valid = begin >= 0 && end <= a.prefix_keys && count >= 0 && count <= end - begin;
    return valid ? Span{int32_t(begin), int32_t(count)} : Span{0, -1};
}

__device__ Span suffix_of(const SharedPrefix& a, int64_t branch) {
    const int32_t length = a.suffix_length[branch];
    return {0, length <= a.suffix_rows ? max(length, -1) : -1};
}

template <class T>
__device__ KeyList<T> prefix_keys(const SharedPrefix& a, int head) {
    const T* k = static_cast<const T*>(a.k_prefix) + head * a.kp_head;
    const T* v = static_cast<const T*>(a.v_prefix) + head * a.vp_head;
    return {k, v, a.kp_row, a.vp_row, a.visible, a.prefix_rows};
}

template <class T>
__device__ KeyList<T> suffix_keys(const SharedPrefix& a, int branch, int head) {
    const T* k = static_cast<const T*>(a.k_suffix) + branch * a.ks_branch + head * a.ks_head;
    const T* v = static_cast<const T*>(a.v_suffix) + branch * a.vs_branch + head * a.vs_head;
    return {k, v, a.ks_row, a.vs_row, nullptr, a.suffix_rows};
}

// The query rows of a key head, in the order of the branches.
template <class T>
struct BranchRows {
    const SharedPrefix& a;
    const Parts& parts;
    int kv_head, group, first, count, part;

    __device__ const T* q(int row) const {
        return static_cast<const T*>(a.q) + branch(row) * a.q_branch + head(row) * a.q_head;
    }
    __device__ Span seen(int row) const {
        const Span span = part < parts.splits ? prefix_of(a, branch(row)) : suffix_of(a, branch(row));
        return {span.begin, max(span.count, 0)};
    }
    __device__ float* out(int row) const { return parts.out + place(row) * a.head_dim; }
    __device__ float* lse(int row) const { return parts.lse + place(row); }

  private:
    __device__ int branch(int row) const { return (first + row) / group; }
    __device__ int head(int row) const { return kv_head * group + (first + row) % group; }
    __device__ int64_t place(int row) const { return (part * a.branches + branch(row)) * a.q_heads + head(row); }
};

// The blocks of each key head: first those of the prefix, tile by tile, then those of the suffixes, branch by branch.
template <class T, int D>
__global__ __launch_bounds__(THREADS, 4) void shared_prefix_kernel(SharedPrefix a, Parts parts, Scale scale) {
    constexpr int ROWS = Tiles<T, D>::ROWS;
    const int kv_heads = int(a.kv_heads), head = blockIdx.x % kv_heads, work = blockIdx.x / kv_heads;
    const int group = int(a.q_heads) / kv_heads, suffix_work = work - parts.prefix_tiles * parts.splits;
    BranchRows<T> rows = {a, parts, head, group, 0, 0, parts.splits};
    KeyList<T> keys;
    Part part = {0, 1};
    if (suffix_work < 0) {
        part = {work % parts.splits, parts.splits};
        rows.part = part.index;
        rows.first = work / parts.splits * ROWS;
        rows.count = min(ROWS, int(a.branches) * group - rows.first);
        keys = prefix_keys<T>(a, head);
    } else {
        const int branch = suffix_work / parts.suffix_tiles, within = suffix_work % parts.suffix_tiles * ROWS;
        rows.first = branch * group + within;
        rows.count = min(ROWS, group - within);
        keys = suffix_keys<T>(a, branch, head);
    }
    attend<T, D>(rows, keys, int(a.head_dim), part, scale);
}

// Adds up the parts of a branch and query head, one block for each, weighted by their share of the sum of exp(scores).
template <class T>
__global__ __launch_bounds__(THREADS) void combine_kernel(SharedPrefix a, Parts parts) {
    const int64_t row = blockIdx.x, rows = a.branches * a.q_heads, branch = row / a.q_heads;
    const bool valid = prefix_of(a, branch).count >= 0 && suffix_of(a, branch).count >= 0;
    float top = -INFINITY, total = 0;
    for (int part = 0; part < parts.count; ++part) top = fmaxf(top, parts.lse[part * rows + row]);
    const float base = top == -INFINITY ? 0 : top;
    for (int part = 0; part < parts.count; ++part) total += expf(parts.lse[part * rows + row] - base);
    for (int64_t column = threadIdx.x; column < a.head_dim; column += THREADS) {
        float sum = 0;
        for (int part = 0; part < parts.count; ++part) {
            const float lse = parts.lse[part * rows + row];
            sum += expf(lse - base) * parts.out[(part * rows + row) * a.head_dim + column];
        }
        const float out = total == 0 ? 0 : sum / total;
        static_cast<T*>(a.out)[row * a.head_dim + column] = from_float<T>(valid ? out : NAN);
    }
    if (threadIdx.x == 0) a.lse[row] = valid ? top + logf(total) : NAN;
}

// The visible keys of each batch row.
struct VisibleKeys {
    int32_t* index;   // [batch, keys] the visible ones, in order
    int32_t* before;  // [batch, keys + 1] how many of them come before a key
};

// Lists the visible keys, with one block for each batch row.
__global__ __launch_bounds__(THREADS) void list_visible_kernel(const uint8_t* visible, int64_t keys, VisibleKeys list) {
    constexpr int RUN = 8;  // keys that a thread takes at a time
    WarpSums& sums = *new (shared_memory) WarpSums;
    visible += blockIdx.x * keys;
    int32_t* const index = list.index + blockIdx.x * keys;
    int32_t* const before = list.before + blockIdx.x * (keys + 1);
    int reached = 0;
    for (int64_t turn = 0; turn < keys; turn += THREADS * RUN) {
        const int64_t first = turn + threadIdx.x * RUN, last = min(first + RUN, keys);
        int count = 0;
        for (int64_t key = first; key < last; ++key) count += visible[key];
        const Scan scan = block_scan(count, sums);
        int place = reached + scan.before;
        for (int64_t key = first; key < last; ++key) {
            before[key] = place;
            if (visible[key]) index[place++] = int32_t(key);
        }
        reached += scan.total;
    }
    if (threadIdx.x == 0) before[keys] = reached;
}

// The query rows of a key head, in the order of the queries.
template <class T>
struct QueryRows {
    const Masked& a;
    const int32_t* before;
    int batch, kv_head, group, first, count;

    __device__ const T* q(int row) const {
        return static_cast<const T*>(a.q) + batch * a.q_batch + head(row) * a.q_head + query(row) * a.q_row;
    }
    __device__ Span seen(int row) const { return {0, before[a.causal ? a.keys - a.queries + query(row) + 1 : a.keys]}; }
    __device__ T* out(int row) const { return static_cast<T*>(a.out) + place(row) * a.head_dim; }
    __device__ float* lse(int row) const { return a.lse + place(row); }

  private:
    __device__ int query(int row) const { return (first + row) / group; }
    __device__ int head(int row) const { return kv_head * group + (first + row) % group; }
    __device__ int64_t place(int row) const { return (batch * a.q_heads + head(row)) * a.queries + query(row); }
};

// Each key head of each batch row has `tiles` blocks.
template <class T, int D>
__global__ __launch_bounds__(THREADS, 4) void masked_kernel(Masked a, VisibleKeys list, int tiles, Scale scale) {
    constexpr int ROWS = Tiles<T, D>::ROWS;
    const int kv_heads = int(a.kv_heads), group = int(a.q_heads) / kv_heads, first = blockIdx.x % tiles * ROWS;
    const int head = blockIdx.x / tiles % kv_heads, batch = blockIdx.x / tiles / kv_heads;
    const int count = min(ROWS, int(a.queries) * group - first);
    const QueryRows<T> rows = {a, list.before + batch * (a.keys + 1), batch, head, group, first, count};
    const T* k = static_cast<const T*>(a.k) + batch * a.k_batch + head * a.k_head;
    const T* v = static_cast<const T*>(a.v) + batch * a.v_batch + head * a.v_head;
    const KeyList<T> keys = {k, v, a.k_row, a.v_row, list.index + batch * a.keys, a.keys};
    attend<T, D>(rows, keys, int(a.head_dim), {0, 1}, scale);
}

}  // namespace
}  // namespace mmbdhs
