// The kernels that attention.cu launches.
#pragma once

#include "attention/attention.h"
#include "attention/cuda/attention_tile.cuh"

namespace mmbdhs {
namespace {

// The results of the blocks of shared_prefix_kernel: outputs over their own keys alone, and the lse of these. Where the
// lse is -inf, the output may not have been written.
struct Parts {
    float* out;         // [count, branches, q_heads, head_dim]
    float* lse;         // [count, branches, q_heads]
    int count;          // splits and suffix_splits
    int splits;         // blocks that share the keys of a prefix
    int suffix_splits;  // blocks that share the keys of a suffix
    int prefix_tiles;   // of query rows, for each key head
    int suffix_tiles;   // for each branch and key head
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

// The query rows of a key head, in the order of the branches. Their results are parts.
template <class T>
struct BranchRows {
    static constexpr bool ONLY_LSE_IF_EMPTY = true;
    const SharedPrefix& a;
    int kv_head, group, first, count, part;
    bool of_prefix;
    float *out, *lse;

    __device__ QueryRow<T> row(int number) const {
        const int64_t branch = (first + number) / group, head = kv_head * group + (first + number) % group;
        const Span seen = of_prefix ? prefix_of(a, branch) : suffix_of(a, branch);
        return {static_cast<const T*>(a.q) + branch * a.q_branch + head * a.q_head,
                (part * a.branches + branch) * a.q_heads + head,
                {seen.begin, max(seen.count, 0)}};
    }
};

// The blocks of the prefixes, then those of the suffixes. The tile of rows counts fastest, so that blocks that read the
// same keys run together; then come the key heads.
template <class T, int D>
__global__ __launch_bounds__(THREADS, 4) void shared_prefix_kernel(SharedPrefix a, Parts parts, Scale scale) {
    constexpr int ROWS = Tiles<T, D>::ROWS;
    const int kv_heads = int(a.kv_heads), group = int(a.q_heads) / kv_heads;
    const int work = blockIdx.x, suffix_work = work - parts.prefix_tiles * kv_heads * parts.splits;
    BranchRows<T> rows = {a, 0, group, 0, 0, 0, suffix_work < 0, parts.out, parts.lse};
    KeyList<T> keys;
    Part part;
    if (suffix_work < 0) {
        const int tile = work % parts.prefix_tiles, rest = work / parts.prefix_tiles;
        rows.kv_head = rest % kv_heads;
        rows.part = rest / kv_heads;
        part = {rows.part, parts.splits};
        rows.first = tile * ROWS;
        rows.count = min(ROWS, int(a.branches) * group - rows.first);
        keys = prefix_keys<T>(a, rows.kv_head);
    } else {
        const int tile = suffix_work % parts.suffix_tiles, rest = suffix_work / parts.suffix_tiles;
        const int branch = rest / kv_heads % int(a.branches), split = rest / kv_heads / int(a.branches);
        rows.kv_head = rest % kv_heads;
        rows.part = parts.splits + split;
        part = {split, parts.suffix_splits};
        rows.first = branch * group + tile * ROWS;
        rows.count = min(ROWS, group - tile * ROWS);
        keys = suffix_keys<T>(a, branch, rows.kv_head);
    }
    attend<T, D>(rows, keys, int(a.head_dim), part, scale);
}

// The shared memory of combine_kernel.
struct WarpParts {
    static constexpr int COLUMNS = 256;  // the largest head size
    alignas(16) float sums[WARPS][COLUMNS];
};

// Adds up a warp's share of the parts of a row, each times its share of the sum of exp(scores).
__device__ void add_parts(WarpParts& memory, const Parts& parts, int64_t row, int64_t rows, int head_dim, float base) {
    constexpr int AT_ONCE = 4;  // parts on their way
    const int warp = threadIdx.x / WARP;
    for (int column = threadIdx.x % WARP * 4; column < head_dim; column += WARP * 4) {
        float sums[4] = {};
        for (int first = warp; first < parts.count; first += AT_ONCE * WARPS) {
            Vector<float, 4> out[AT_ONCE];
            float weights[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                const int part = first + i * WARPS;
                const float lse = part < parts.count ? parts.lse[part * rows + row] : -INFINITY;
                weights[i] = expf(lse - base);
                out[i] = {};
                if (lse != -INFINITY) out[i] = load<4>(parts.out + (part * rows + row) * head_dim + column);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                for (int e = 0; e < 4; ++e) sums[e] += weights[i] * out[i].at[e];
            }
        }
        store<4>(&memory.sums[warp][column], {{sums[0], sums[1], sums[2], sums[3]}});
    }
}

// Adds up the parts of a branch and query head, one block for each.
template <class T>
__global__ __launch_bounds__(THREADS) void combine_kernel(SharedPrefix a, Parts parts) {
    WarpParts& memory = *new (shared_memory) WarpParts;
    const int64_t row = blockIdx.x, rows = a.branches * a.q_heads, branch = int(blockIdx.x) / int(a.q_heads);
    float top = -INFINITY, total = 0;
    for (int part = threadIdx.x % WARP; part < parts.count; part += WARP)
        top = fmaxf(top, parts.lse[part * rows + row]);
    for (int step = WARP / 2; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, step));
    const float base = top == -INFINITY ? 0 : top;
    for (int part = threadIdx.x % WARP; part < parts.count; part += WARP)
        total += expf(parts.lse[part * rows + row] - base);
    for (int step = WARP / 2; step > 0; step /= 2) total += __shfl_xor_sync(FULL_WARP, total, step);
    add_parts(memory, parts, row, rows, int(a.head_dim), base);
    __syncthreads();
    const bool valid = prefix_of(a, branch).count >= 0 && suffix_of(a, branch).count >= 0;
    const float share = !valid ? NAN : total == 0 ? 0 : 1 / total;
    if (threadIdx.x == 0) a.lse[row] = valid ? top + logf(total) : NAN;
    const int column = threadIdx.x * CHUNK<T>;
    if (column >= a.head_dim) return;
    Chunk<T> chunk;
#pragma unroll
    for (int e = 0; e < CHUNK<T>; ++e) {
        float sum = 0;
        for (int warp = 0; warp < WARPS; ++warp) sum += memory.sums[warp][column + e];
        chunk.at[e] = from_float<T>(sum * share);
    }
    store(static_cast<T*>(a.out) + row * a.head_dim + column, chunk);
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
    static constexpr bool ONLY_LSE_IF_EMPTY = false;
    const Masked& a;
    const int32_t* before;
    int batch, kv_head, group, first, count;
    T* out;
    float* lse;

    __device__ QueryRow<T> row(int number) const {
        const int64_t query = (first + number) / group, head = kv_head * group + (first + number) % group;
        return {static_cast<const T*>(a.q) + batch * a.q_batch + head * a.q_head + query * a.q_row,
                (batch * a.q_heads + head) * a.queries + query,
                {0, before[a.causal ? a.keys - a.queries + query + 1 : a.keys]}};
    }
};

// Each key head of each batch row has `tiles` blocks.
template <class T, int D>
__global__ __launch_bounds__(THREADS, 4) void masked_kernel(Masked a, VisibleKeys list, int tiles, Scale scale) {
    constexpr int ROWS = Tiles<T, D>::ROWS;
    const int kv_heads = int(a.kv_heads), group = int(a.q_heads) / kv_heads, first = blockIdx.x % tiles * ROWS;
    const int head = blockIdx.x / tiles % kv_heads, batch = blockIdx.x / tiles / kv_heads;
    const int count = min(ROWS, int(a.queries) * group - first);
    const int32_t* const before = list.before + batch * (a.keys + 1);
    const QueryRows<T> rows = {a, before, batch, head, group, first, count, static_cast<T*>(a.out), a.lse};
    const T* k = static_cast<const T*>(a.k) + batch * a.k_batch + head * a.k_head;
    const T* v = static_cast<const T*>(a.v) + batch * a.v_batch + head * a.v_head;
    const KeyList<T> keys = {k, v, a.k_row, a.v_row, list.index + batch * a.keys, a.keys};
    attend<T, D>(rows, keys, int(a.head_dim), {0, 1}, scale);
}

}  // namespace
}  // namespace mmbdhs
