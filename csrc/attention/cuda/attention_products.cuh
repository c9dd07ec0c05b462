// Products of a tile of query rows with a tile of keys, and of the weights that follow with the values. Sums are float32.
// Tensor cores multiply elements of 16 bits, even for few rows; float32 is multiplied by plain multiply-adds.
#pragma once

#include "attention/cuda/attention_memory.cuh"

namespace mmbdhs {
namespace {

// A thread's part of the products, by tensor cores. Two warps share 16 rows; each has half of the columns in blocks of
// 8.
template <class T, int D>
class Products {
    using Row = typename Tiles<T, D>::Row;

  public:
    __device__ static void scores(Tiles<T, D>& tiles, const Row* k) {
        constexpr int BLOCKS = Tiles<T, D>::KEYS / 16;
        const Place at;
        float sums[BLOCKS][4] = {};
        for (int depth = 0; depth < D; depth += 16) {
            const T* q[2] = {&tiles.q[at.row][depth + at.column], &tiles.q[at.row + 8][depth + at.column]};
            const uint32_t a[4] = {pair(q[0]), pair(q[1]), pair(q[0] + 8), pair(q[1] + 8)};
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block) {
                const T* key = &k[(at.half * BLOCKS + block) * 8 + at.group][depth + at.column];
                const uint32_t b[2] = {pair(key), pair(key + 8)};
                multiply_add<T>(sums[block], a, b);
            }
        }
        each_pair(sums, [&](int row, int column, float first, float second) {
            mmbdhs::store<2>(&tiles.scores[row][column], {{first, second}});
        });
    }

    // Are this thread's share of the values finite? Their exponents are not all ones then: adding 1 to them leaves the
    // sign bit, which is free, as it is.
    __device__ static bool are_finite(const Row* v) {
        constexpr int CHUNKS = D / CHUNK<T>;
        constexpr uint32_t EXPONENTS = std::is_same_v<T, __half> ? 0x7C007C00u : 0x7F807F80u;
        constexpr uint32_t ONES = std::is_same_v<T, __half> ? 0x04000400u : 0x00800080u;
        uint32_t carried = 0;
#pragma unroll
        for (int i = threadIdx.x; i < Tiles<T, D>::KEYS * CHUNKS; i += THREADS) {
            const Chunk<T> chunk = load<CHUNK<T>>(&v[i / CHUNKS][i % CHUNKS * CHUNK<T>]);
            for (int e = 0; e < CHUNK<T>; e += 2)
                carried |= (word({{chunk.at[e], chunk.at[e + 1]}}) & EXPONENTS) + ONES;
        }
        return (carried & 0x80008000u) == 0;
    }

    __device__ void add(const Tiles<T, D>& tiles, const Row* v) {
        shrink(tiles);
        const Place at;
        for (int key = 0; key < Tiles<T, D>::KEYS; key += 16) {
            const float* weights[2] = {&tiles.scores[at.row][key + at.column],
                                       &tiles.scores[at.row + 8][key + at.column]};
            const uint32_t a[4] = {pack(weights[0]), pack(weights[1]), pack(weights[0] + 8), pack(weights[1] + 8)};
            const T* value = &v[key + threadIdx.x % 16][at.half * D / 2];
#pragma unroll
            for (int block = 0; block < D / 16; ++block) {
                uint32_t b[2];
                load_transposed(b, value + 8 * block);
                multiply_add<T>(sums_[block], a, b);
            }
        }
    }

    // The same, but for each row only the keys that it sees: a product of matrices would multiply the weight 0 of a
    // hidden key with a value that is not finite.
    __device__ void add_seen(const Tiles<T, D>& tiles, const Row* v, const KeyTile& tile) {
        shrink(tiles);
        const Place at;
        for (int high = 0; high < 2; ++high) {
            const int row = at.row + 8 * high, seen = tile.seen_by(tiles.rows[row].seen);
#pragma unroll 1
            for (int key = 0; key < seen; ++key) {
                const float weight = tiles.scores[row][key];
#pragma unroll
                for (int block = 0; block < D / 16; ++block) {
                    const auto value = load<2>(&v[key][(at.half * (D / 16) + block) * 8 + at.column]);
                    for (int e = 0; e < 2; ++e) sums_[block][2 * high + e] += weight * float(value.at[e]);
                }
            }
        }
    }

    // Writes the sums times their row's share.
    __device__ void finish(Tiles<T, D>& tiles) const {
        each_pair(sums_, [&](int row, int column, float first, float second) {
            const float share = tiles.share[row];
            mmbdhs::store<2>(&tiles.results[row][column], {{first * share, second * share}});
        });
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

    template <int BLOCKS, class Take>
    __device__ static void each_pair(const float (&sums)[BLOCKS][4], const Take& take) {
        const Place at;
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            const int column = (at.half * BLOCKS + block) * 8 + at.column;
            for (int i = 0; i < 4; i += 2) take(at.row + i / 2 * 8, column, sums[block][i], sums[block][i + 1]);
        }
    }

    __device__ void shrink(const Tiles<T, D>& tiles) {
        const Place at;
#pragma unroll
        for (auto& block : sums_) {
            for (int i = 0; i < 4; ++i) block[i] *= tiles.shrink[at.row + i / 2 * 8];
        }
    }

    float sums_[D / 16][4] = {};
};

// The same by multiply-adds. The eight members of a row share its keys, and then the columns of its output.
template <int D>
class Products<float, D> {
    using Memory = Tiles<float, D>;
    using Row = typename Memory::Row;

  public:
    __device__ void scores(Memory& tiles, const Row* k) const {
        float sums[KEYS / MEMBERS][4] = {};  // four for each score, so that chains of rounding and waiting are shorter
        for (int column = 0; column < D; column += 4) {
            const auto q = load<4>(&tiles.q[row_][column]);
#pragma unroll
            for (int i = 0; i < KEYS / MEMBERS; ++i) {
                const auto key = load<4>(&k[member_ + MEMBERS * i][column]);
                for (int e = 0; e < 4; ++e) sums[i][e] += q.at[e] * key.at[e];
            }
        }
        for (int i = 0; i < KEYS / MEMBERS; ++i) {
            tiles.scores[row_][member_ + MEMBERS * i] = (sums[i][0] + sums[i][1]) + (sums[i][2] + sums[i][3]);
        }
    }

    // Only the keys that the row sees: the weight 0 of a hidden key gives NaN with a value that is not finite.
    __device__ void add_seen(const Memory& tiles, const Row* v, const KeyTile& tile) {
#pragma unroll
        for (auto& chunk : sums_) {
            for (float& sum : chunk) sum *= tiles.shrink[row_];
        }
        const int seen = tile.seen_by(tiles.rows[row_].seen);
#pragma unroll 2
        for (int key = 0; key < seen; ++key) {
            const float weight = tiles.scores[row_][key];
#pragma unroll
            for (int i = 0; i < D / 32; ++i) {
                const auto value = load<4>(&v[key][(member_ + MEMBERS * i) * 4]);
                for (int e = 0; e < 4; ++e) sums_[i][e] += weight * value.at[e];
            }
        }
    }

    __device__ void finish(Memory& tiles) const {
        const float share = tiles.share[row_];
#pragma unroll
        for (int i = 0; i < D / 32; ++i) {
            Vector<float, 4> results;
            for (int e = 0; e < 4; ++e) results.at[e] = sums_[i][e] * share;
            mmbdhs::store<4>(&tiles.results[row_][(member_ + MEMBERS * i) * 4], results);
        }
    }

  private:
    static constexpr int MEMBERS = Memory::ROW_THREADS, KEYS = Memory::KEYS;
    const int row_ = threadIdx.x / MEMBERS, member_ = threadIdx.x % MEMBERS;
    float sums_[D / 32][4] = {};
};

}  // namespace
}  // namespace mmbdhs
