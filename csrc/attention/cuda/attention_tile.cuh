// Attention of a tile of query rows over a list of keys, by one block. Keys and values pass through shared memory in
// tiles, an online softmax in base 2 follows the largest score of each row, and sums are float32. Tensor cores multiply
// elements of 16 bits, even for few rows; float32 is multiplied by plain multiply-adds.
#pragma once

#include <math.h>

#include <cstring>
#include <new>

#include "attention/cuda/tensor_cores.cuh"
#include "cuda/block.cuh"

namespace mmbdhs {
namespace {

template <class T>
constexpr bool TENSOR_CORES = sizeof(T) == 2;
template <class T>
constexpr int CHUNK = 16 / sizeof(T);  // elements of a wide load
constexpr float LN_2 = 0.6931471805599453f;

// Neighbouring elements, which one load reads if they are aligned. An aggregate of T may alias T.
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

// Scores of keys in base 2: factor * q·k, or cap * tanh(factor * q·k) if there is a cap.
struct Scale {
    float factor, cap;
    __device__ float operator()(float product) const {
        return cap > 0 ? cap * tanhf(factor * product) : factor * product;
    }
};

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

// Block number `index` of the `count` blocks that share the keys of a tile of rows.
struct Part {
    int index, count;
};

// A block's shared memory. The spare columns keep rows that are read together in different banks.
template <class T, int D>
struct Tiles {
    static constexpr int ROWS = TENSOR_CORES<T> ? 32 : 16;
    static constexpr int KEYS = 8192 / (D * sizeof(T));
    static constexpr int ROW_THREADS = THREADS / ROWS;  // threads that share a query row, the members of the row
    using Row = T[D + CHUNK<T>];
    alignas(16) Row q[ROWS];
    alignas(16) Row k[KEYS];
    alignas(16) Row v[KEYS];
    float scores[ROWS][KEYS + 4];  // the scores of the tile's keys, then their weights
    float shrink[ROWS];            // the factor by which a row's earlier sums shrink under its new largest score
    float share[ROWS];             // 1 / the sum of a row's weights
    Span seen[ROWS];
};

template <class T>
__device__ Chunk<T> load_chunk(const T* from, bool aligned) {
    if (aligned) return load<CHUNK<T>>(from);
    Chunk<T> chunk;
    for (int i = 0; i < CHUNK<T>; ++i) chunk.at[i] = from[i];
    return chunk;
}

template <class T>
__device__ bool is_aligned(const T* first, int64_t stride) {
    return (reinterpret_cast<uintptr_t>(first) | uintptr_t(stride * int64_t(sizeof(T)))) % sizeof(Chunk<T>) == 0;
}

// Fills COUNT rows of shared memory with the chunks that load(row, column) gives; columns from head_dim on become 0.
template <int D, int COUNT, class T, class Load>
__device__ void fill_rows(T (*to)[D + CHUNK<T>], int head_dim, const Load& load) {
    constexpr int CHUNKS = D / CHUNK<T>;
#pragma unroll(D > 128 ? 2 : 4)  // as many loads at a time as registers allow
    for (int i = threadIdx.x; i < COUNT * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, column = i % CHUNKS * CHUNK<T>;
        const Chunk<T> chunk = column < head_dim ? load(row, column) : Chunk<T>{};
        store(&to[row][column], chunk);
    }
}

// Loads the keys and values first … first + count - 1; the others of the tile become 0.
template <class T, int D>
__device__ void load_keys(Tiles<T, D>& tiles, const KeyList<T>& keys, int head_dim, int64_t first, int count) {
    const auto fill = [&](T(*to)[D + CHUNK<T>], const T* from, int64_t stride, float missing) {
        const bool aligned = is_aligned(from, stride);
        fill_rows<D, Tiles<T, D>::KEYS>(to, head_dim, [&](int key, int column) {
            Chunk<T> chunk = {};
            if (key >= count) return chunk;
            const int64_t row = keys.index ? keys.index[first + key] : first + key;
            if (row >= 0 && row < keys.rows) return load_chunk(from + row * stride + column, aligned);
            for (T& element : chunk.at) element = from_float<T>(missing);
            return chunk;
        });
    };
    fill(tiles.k, keys.k, keys.k_row, NAN);
    fill(tiles.v, keys.v, keys.v_row, 0);
}

// A thread's part of the products, by tensor cores. Two warps share 16 rows; each has half of the columns in blocks of
// 8.
template <class T, int D>
class Products {
  public:
    __device__ static void scores(Tiles<T, D>& tiles) {
        constexpr int BLOCKS = Tiles<T, D>::KEYS / 16;
        const Place at;
        float sums[BLOCKS][4] = {};
        for (int depth = 0; depth < D; depth += 16) {
            const T* q[2] = {&tiles.q[at.row][depth + at.column], &tiles.q[at.row + 8][depth + at.column]};
            const uint32_t a[4] = {pair(q[0]), pair(q[1]), pair(q[0] + 8), pair(q[1] + 8)};
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block) {
                const T* k = &tiles.k[(at.half * BLOCKS + block) * 8 + at.group][depth + at.column];
                const uint32_t b[2] = {pair(k), pair(k + 8)};
                multiply_add<T>(sums[block], a, b);
            }
        }
        each(sums, [&](int row, int column, float sum) { tiles.scores[row][column] = sum; });
    }

    __device__ void add(const Tiles<T, D>& tiles) {
        const Place at;
#pragma unroll
        for (auto& block : sums_) {
            for (int i = 0; i < 4; ++i) block[i] *= tiles.shrink[at.row + i / 2 * 8];
        }
        for (int key = 0; key < Tiles<T, D>::KEYS; key += 16) {
            const float* weights[2] = {&tiles.scores[at.row][key + at.column],
                                       &tiles.scores[at.row + 8][key + at.column]};
            const uint32_t a[4] = {pack(weights[0]), pack(weights[1]), pack(weights[0] + 8), pack(weights[1] + 8)};
            const T* v = &tiles.v[key + threadIdx.x % 16][at.half * D / 2];
#pragma unroll
            for (int block = 0; block < D / 16; ++block) {
                uint32_t b[2];
                load_transposed(b, v + 8 * block);
                multiply_add<T>(sums_[block], a, b);
            }
        }
    }

    template <class Store>
    __device__ void store(const Store& to) const {
        each(sums_, to);
    }

  private:
    struct Place {
        int group = threadIdx.x % WARP / 4;
        int column = threadIdx.x % 4 * 2;
        int row = threadIdx.x / WARP % 2 * 16 + group;  // and row + 8
        int half = threadIdx.x / WARP / 2;
    };

    __device__ static uint32_t word(Vector<T, 2> elements) {
        uint32_t bits;
        memcpy(&bits, &elements, sizeof bits);
        return bits;
    }

    __device__ static uint32_t pair(const T* elements) { return word(load<2>(elements)); }

    __device__ static uint32_t pack(const float* values) {
        return word({{from_float<T>(values[0]), from_float<T>(values[1])}});
    }

    template <int BLOCKS, class Store>
    __device__ static void each(const float (&sums)[BLOCKS][4], const Store& to) {
        const Place at;
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            const int column = (at.half * BLOCKS + block) * 8 + at.column;
            for (int i = 0; i < 4; ++i) to(at.row + i / 2 * 8, column + i % 2, sums[block][i]);
        }
    }

    float sums_[D / 16][4] = {};
};

// The same by multiply-adds. The eight members of a row share its keys, and then the columns of its output.
template <int D>
class Products<float, D> {
  public:
    __device__ static void scores(Tiles<float, D>& tiles) {
        const int row = threadIdx.x / ROW_THREADS, member = threadIdx.x % ROW_THREADS;
        float sums[KEYS / ROW_THREADS][4] =
            {};  // four sums for each score make the chains of rounding and waiting shorter
        for (int column = 0; column < D; column += 4) {
            const auto q = load<4>(&tiles.q[row][column]);
#pragma unroll
            for (int i = 0; i < KEYS / ROW_THREADS; ++i) {
                const auto k = load<4>(&tiles.k[member + ROW_THREADS * i][column]);
                for (int e = 0; e < 4; ++e) sums[i][e] += q.at[e] * k.at[e];
            }
        }
        for (int i = 0; i < KEYS / ROW_THREADS; ++i) {
            tiles.scores[row][member + ROW_THREADS * i] = (sums[i][0] + sums[i][1]) + (sums[i][2] + sums[i][3]);
        }
    }

    __device__ void add(const Tiles<float, D>& tiles) {
        const int row = threadIdx.x / ROW_THREADS, member = threadIdx.x % ROW_THREADS;
#pragma unroll
        for (auto& chunk : sums_) {
            for (float& sum : chunk) sum *= tiles.shrink[row];
        }
#pragma unroll 2
        for (int key = 0; key < KEYS; ++key) {
            const float weight = tiles.scores[row][key];
#pragma unroll
            for (int i = 0; i < D / 32; ++i) {
                const auto v = load<4>(&tiles.v[key][(member + ROW_THREADS * i) * 4]);
                for (int e = 0; e < 4; ++e) sums_[i][e] += weight * v.at[e];
            }
        }
    }

    template <class Store>
    __device__ void store(const Store& to) const {
        const int row = threadIdx.x / ROW_THREADS, member = threadIdx.x % ROW_THREADS;
#pragma unroll
        for (int i = 0; i < D / 32; ++i) {
            for (int e = 0; e < 4; ++e) to(row, (member + ROW_THREADS * i) * 4 + e, sums_[i][e]);
        }
    }

  private:
    static constexpr int ROW_THREADS = Tiles<float, D>::ROW_THREADS, KEYS = Tiles<float, D>::KEYS;
    float sums_[D / 32][4] = {};
};

// The softmax of a thread's row: its largest score so far, and the sum of the weights of the thread's own keys.
template <class T, int D>
class Softmax {
  public:
    // Turns the scores of the keys from `first` on into weights. The row sees the keys before `count`.
    __device__ void take(Tiles<T, D>& tiles, int count, int first, Scale scale) {
        float* scores = &tiles.scores[row_][member_];
        const int left = count - first - member_;
        const float before = top_;
        for (int key = 0; key < KEYS; key += ROW_THREADS) {
            scores[key] = key < left ? scale(scores[key]) : -INFINITY;
            top_ = fmaxf(top_, scores[key]);
        }
        for (int step = ROW_THREADS / 2; step > 0; step /= 2)
            top_ = fmaxf(top_, __shfl_xor_sync(FULL_WARP, top_, step));
        const float shrink = exp2f(before - base());
        sum_ *= shrink;
        for (int key = 0; key < KEYS; key += ROW_THREADS) {
            scores[key] = exp2f(scores[key] - base());
            sum_ += scores[key];
        }
        if (member_ == 0) tiles.shrink[row_] = shrink;
    }

    // Stores the row's share. Returns the natural log of the sum of exp(scores).
    __device__ float finish(Tiles<T, D>& tiles) {
        for (int step = ROW_THREADS / 2; step > 0; step /= 2) sum_ += __shfl_xor_sync(FULL_WARP, sum_, step);
        if (member_ == 0) tiles.share[row_] = sum_ == 0 ? 0 : 1 / sum_;
        return (top_ + log2f(sum_)) * LN_2;
    }

  private:
    static constexpr int ROW_THREADS = Tiles<T, D>::ROW_THREADS, KEYS = Tiles<T, D>::KEYS;

    // The score with the weight 1. A row that sees nothing has no largest score.
    __device__ float base() const { return top_ == -INFINITY ? 0 : top_; }

    int row_ = threadIdx.x / ROW_THREADS, member_ = threadIdx.x % ROW_THREADS;
    float top_ = -INFINITY, sum_ = 0;
};

// Rows whose keys begin at the same place are worked on together: the first of them gets the span of the longest, the
// others get an empty one.
template <class T, int D>
__device__ Span due_at(const Tiles<T, D>& tiles, int row) {
    Span due = tiles.seen[row];
    for (int earlier = row - 1; earlier >= 0; --earlier) {
        if (tiles.seen[earlier].begin == due.begin) return {due.begin, 0};
    }
    for (int later = row + 1; later < Tiles<T, D>::ROWS; ++later) {
        if (tiles.seen[later].begin == due.begin) due.count = max(due.count, tiles.seen[later].count);
    }
    return due;
}

// The whole work of a block. `rows` has `count` query rows, and q(row), seen(row), out(row) and lse(row) of each.
template <class T, int D, class Rows>
__device__ void attend(const Rows& rows, const KeyList<T>& keys, int head_dim, Part part, Scale scale) {
    using Memory = Tiles<T, D>;
    static_assert(sizeof(Memory) <= 40 * 1024, "four blocks should fit a multiprocessor");
    Memory& tiles = *new (shared_memory) Memory;
    fill_rows<D, Memory::ROWS>(tiles.q, head_dim, [&](int row, int column) {
        const T* q = row < rows.count ? rows.q(row) : nullptr;
        return q ? load_chunk(q + column, is_aligned(q, 0)) : Chunk<T>{};
    });
    const int mine = threadIdx.x;
    if (mine < Memory::ROWS) tiles.seen[mine] = mine < rows.count ? rows.seen(mine) : Span{0, 0};
    __syncthreads();
    Products<T, D> products;
    Softmax<T, D> softmax;
    for (int row = 0; row < Memory::ROWS; ++row) {
        const Span due = due_at(tiles, row);
        if (due.count == 0) continue;
        const int length = ((due.count + Memory::KEYS - 1) / Memory::KEYS + part.count - 1) / part.count * Memory::KEYS;
        const int last = min(due.count, length * (part.index + 1));
        const Span seen = tiles.seen[threadIdx.x / Memory::ROW_THREADS];
        const int count = seen.begin == due.begin ? seen.count : 0;
        for (int first = length * part.index; first < last; first += Memory::KEYS) {
            __syncthreads();  // no thread still reads the previous tile
            load_keys(tiles, keys, head_dim, int64_t{due.begin} + first, last - first);
            __syncthreads();
            products.scores(tiles);
            __syncthreads();
            softmax.take(tiles, count, first, scale);
            __syncthreads();
            products.add(tiles);
        }
    }
    const float lse = softmax.finish(tiles);
    if (mine % Memory::ROW_THREADS == 0 && mine / Memory::ROW_THREADS < rows.count)
        *rows.lse(mine / Memory::ROW_THREADS) = lse;
    __syncthreads();
    products.store([&](int row, int column, float sum) {
        if (row >= rows.count || column >= head_dim) return;
        auto* out = rows.out(row);
        out[column] = from_float<std::decay_t<decltype(*out)>>(sum * tiles.share[row]);
    });
}

}  // namespace
}  // namespace mmbdhs
