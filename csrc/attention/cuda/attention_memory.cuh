// What a block of the attention kernels has in shared memory, and how queries, keys and values get there: 16 bytes at a
// time, all of a tile at once, and in two stages, so that the next tile is on its way while this one is worked on.
#pragma once

#include <math.h>

#include <climits>
#include <cstring>
#include <new>

#include "attention/cuda/async_copies.cuh"
#include "attention/cuda/tensor_cores.cuh"
#include "cuda/block.cuh"

namespace mmbdhs {
namespace {

template <class T>
constexpr bool TENSOR_CORES = sizeof(T) == 2;
template <class T>
constexpr int CHUNK = 16 / sizeof(T);  // elements of a wide access

// Neighbouring elements, which one access takes if they are aligned. An aggregate of T may alias T.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
    T at[N];
};
template <class T>
using Chunk = Vector<T, CHUNK<T>>;

template <class T>
__device__ T from_float(float value) {
    if constexpr (std::is_same_v<T, __half>) {
        return __float2half_rn(value);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        return __float2bfloat16_rn(value);
    } else {
        return value;
    }
}

template <int N, class T>
__device__ Vector<T, N> load(const T* from) {
    const void* const address = from;
    return *static_cast<const Vector<T, N>*>(__builtin_assume_aligned(address, N * sizeof(T)));
}

template <int N, class T>
__device__ void store(T* to, const Vector<T, N>& elements) {
    void* const address = to;
    *static_cast<Vector<T, N>*>(__builtin_assume_aligned(address, N * sizeof(T))) = elements;
}

// The keys of one head: key i is row `index ? index[i] : i` of `rows`. If there is no such row, the key is NaN.
template <class T>
struct KeyList {
    const T *k, *v;
    int64_t k_row, v_row;  // strides in elements
    const int32_t* index;
    int64_t rows;
};

// The keys that a query row sees: `count` of them, from `begin` on.
struct Span {
    int32_t begin, count;
};

// A query row of a block.
template <class T>
struct QueryRow {
    const T* q;
    int64_t place;  // of its results among all rows
    Span seen;
};

// The keys of rows that see keys from the same `begin` on. All rows of the block see the first `common` of them.
struct Segment {
    int32_t begin, count, common;
};

// Keys first … first + count - 1 of the segment that begins at `begin`.
struct KeyTile {
    int32_t begin, first, count;
    bool mixed;  // does a row of the block not see all of them?

    // How many of them a row sees: the first ones.
    __device__ int seen_by(Span row) const { return row.begin == begin ? max(0, min(row.count - first, count)) : 0; }
};

// A block's shared memory. The spare columns keep rows that are read together in different banks. Four blocks fit a
// multiprocessor of sm_90 and sm_100, and three one of sm_80.
template <class T, int D>
struct Tiles {
    static constexpr int ROWS = TENSOR_CORES<T> ? 32 : 16;
    static constexpr int KEYS = D * sizeof(T) < 256 ? 32 : 8192 / (D * sizeof(T));
    static constexpr int ROW_THREADS = THREADS / ROWS;  // threads that share a query row, the members of the row
    using Row = T[D + CHUNK<T>];
    struct Stage {
        alignas(16) Row k[KEYS];
        alignas(16) Row v[KEYS];
    };
    alignas(16) Row q[ROWS];
    union {
        Stage stages[2];
        alignas(16) float results[ROWS][D + 4];  // when no key is left
    };
    float scores[ROWS][KEYS + 4];  // the scores of the tile's keys, then their weights
    float shrink[ROWS];            // the factor by which a row's earlier sums shrink under its new largest score
    float share[ROWS];             // 1 / the sum of a row's weights
    QueryRow<T> rows[ROWS];        // those of the block, then rows that see nothing
    Segment segments[ROWS];
    int segment_count;
};

template <class T>
__device__ bool is_aligned(const T* first, int64_t stride) {
    return (reinterpret_cast<uintptr_t>(first) | uintptr_t(stride * int64_t(sizeof(T)))) % sizeof(Chunk<T>) == 0;
}

// Copies a chunk whose address is not aligned, or writes 0.
template <class T>
__device__ void copy_elements(T* to, const T* from, bool there) {
#pragma unroll 1
    for (int i = 0; i < CHUNK<T>; ++i) to[i] = there ? from[i] : from_float<T>(0);
}

alignas(16) __device__ const uint32_t NAN_CHUNK[4] = {~0u, ~0u, ~0u, ~0u};  // in every type

// A thread's share of the keys and values of each tile.
template <class T, int D>
class KeyLoader {
    using Memory = Tiles<T, D>;

  public:
    __device__ KeyLoader(const KeyList<T>& keys, int head_dim)
        : keys_(keys),
          wanted_(column_ < head_dim),
          aligned_(is_aligned(keys.k, keys.k_row) && is_aligned(keys.v, keys.v_row)) {}

    // Asks for the rows of the tile's keys; load is the first to look at them.
    __device__ void find(const KeyTile& tile) {
        count_ = tile.count;
        if (count_ == 0) return;
        const int32_t first = tile.begin + tile.first;
        if (keys_.index) {
#pragma unroll
            for (int turn = 0; turn < TURNS; ++turn) rows_[turn] = keys_.index[first + min(key(turn), count_ - 1)];
        } else {
#pragma unroll
            for (int turn = 0; turn < TURNS; ++turn) rows_[turn] = first + key(turn);
        }
    }

    // Begins to load the keys that were found, and closes the group of copies.
    __device__ void load(typename Memory::Stage& stage) const {
        if (aligned_) {
            each(stage, copy_chunk);
        } else {
            each(stage, copy_elements<T>);
        }
        commit_copies();
    }

  private:
    static constexpr int CHUNKS = D / CHUNK<T>, STEP = THREADS / CHUNKS, TURNS = Memory::KEYS / STEP;

    __device__ int key(int turn) const { return key_ + turn * STEP; }

    template <class Copy>
    __device__ __forceinline__ void each(typename Memory::Stage& stage, const Copy& copy) const {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            // No branches between the copies: they would hold up the next one.
            const bool wanted = wanted_ & (key(turn) < count_);
            const bool there = wanted & (rows_[turn] >= 0) & (rows_[turn] < keys_.rows);
            const int64_t row = there ? rows_[turn] : 0;
            const void* const k = keys_.k + row * keys_.k_row + column_;
            const T* const source = static_cast<const T*>(there ? k : NAN_CHUNK);
            copy(&stage.k[key(turn)][column_], source, wanted);
            copy(&stage.v[key(turn)][column_], keys_.v + row * keys_.v_row + column_, there);
        }
    }

    const KeyList<T>& keys_;
    const int key_ = threadIdx.x / CHUNKS, column_ = threadIdx.x % CHUNKS * CHUNK<T>;
    const bool wanted_, aligned_;
    int count_ = 0;  // of the tile's keys
    int32_t rows_[TURNS];
};

// Begins to load `count` queries; the others of the tile become 0, and so do columns from head_dim on.
template <class T, int D>
__device__ void load_queries(Tiles<T, D>& tiles, int count, int head_dim) {
    constexpr int CHUNKS = D / CHUNK<T>;
    const int column = threadIdx.x % CHUNKS * CHUNK<T>;
    for (int row = threadIdx.x / CHUNKS; row < Tiles<T, D>::ROWS; row += THREADS / CHUNKS) {
        const bool there = row < count && column < head_dim;
        const T* const q = tiles.rows[there ? row : 0].q;
        if (is_aligned(q, 0)) {
            copy_chunk(&tiles.q[row][column], there ? q + column : q, there);
        } else {
            copy_elements(&tiles.q[row][column], q + column, there);
        }
    }
}

// Writes the results of `count` rows, out [places, head_dim], in wide stores.
template <class T, int D, class Out>
__device__ void store_results(const Tiles<T, D>& tiles, int count, int head_dim, Out* out) {
    constexpr int CHUNKS = D / CHUNK<Out>;
    const int column = threadIdx.x % CHUNKS * CHUNK<Out>;
    if (column >= head_dim) return;
    for (int row = threadIdx.x / CHUNKS; row < count; row += THREADS / CHUNKS) {
        Chunk<Out> chunk;
#pragma unroll
        for (int i = 0; i < CHUNK<Out>; i += 4) {
            const auto results = load<4>(&tiles.results[row][column + i]);
            for (int e = 0; e < 4; ++e) chunk.at[i + e] = from_float<Out>(results.at[e]);
        }
        store(out + tiles.rows[row].place * head_dim + column, chunk);
    }
}

}  // namespace
}  // namespace mmbdhs
