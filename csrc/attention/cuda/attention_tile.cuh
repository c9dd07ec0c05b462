// Attention of a tile of query rows over a list of keys, by one block: an online softmax in base 2 follows the largest
// score of each row while the keys pass through shared memory in tiles.
#pragma once

#include "attention/cuda/attention_products.cuh"

namespace mmbdhs {
namespace {

constexpr float LN_2 = 0.6931471805599453f;

// Scores of keys in base 2: factor * q·k, or cap * tanh(factor * q·k) if there is a cap.
struct Scale {
    float factor, cap;
    __device__ float operator()(float product) const {
        return cap > 0 ? cap * tanhf(factor * product) : factor * product;
    }
};

// Block number `index` of the `count` blocks that share the keys of a tile of rows.
struct Part {
    int index, count;
};

// The softmax of a thread's row: its largest score so far, and the sum of the weights of the thread's own keys.
template <class T, int D>
class Softmax {
  public:
    // Turns the scores of a tile into weights.
    __device__ void take(Tiles<T, D>& tiles, const KeyTile& tile, Scale scale) {
        float* scores = &tiles.scores[row_][member_];
        const int left = tile.seen_by(tiles.rows[row_].seen) - member_;
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

// Lists the rows and their segments. One warp calls it, and row numbers are worked out nowhere else.
template <class T, int D, class Rows>
__device__ void list_rows(Tiles<T, D>& tiles, const Rows& rows) {
    const int lane = threadIdx.x;
    const bool is_row = lane < rows.count;
    const QueryRow<T> row = is_row ? rows.row(lane) : QueryRow<T>{};
    const Span seen = row.seen;
    const unsigned all = __ballot_sync(FULL_WARP, is_row), same = __match_any_sync(FULL_WARP, seen.begin);
    const int most = __reduce_max_sync(same, seen.count),
              least = __reduce_min_sync(same, is_row ? seen.count : INT_MAX);
    const unsigned before = (1u << lane) - 1;
    const bool first = (same & before) == 0 && most > 0;
    const unsigned firsts = __ballot_sync(FULL_WARP, first);
    if (first) tiles.segments[__popc(firsts & before)] = {seen.begin, most, all & ~same ? 0 : least};
    if (lane < Tiles<T, D>::ROWS) tiles.rows[lane] = row;
    if (lane == 0) tiles.segment_count = __popc(firsts);
}

// The tiles of a block: those of all segments are numbered through, and dealt round the blocks that share them.
template <class T, int D>
class TileWalk {
  public:
    __device__ TileWalk(const Tiles<T, D>& tiles, Part part) : tiles_(tiles), step_(part.count) { advance(part.index); }

    // The next tile. Its count is 0 when there is none.
    __device__ KeyTile take() {
        if (segment_ == tiles_.segment_count) return {0, 0, 0, false};
        const Segment segment = tiles_.segments[segment_];
        const int first = first_, count = min(KEYS, segment.count - first);
        advance(step_);
        return {segment.begin, first, count, first + count > segment.common};
    }

  private:
    __device__ void advance(int count) {
        first_ += count * KEYS;
        while (segment_ < tiles_.segment_count && first_ >= tiles_.segments[segment_].count) {
            first_ -= (tiles_.segments[segment_].count + KEYS - 1) / KEYS * KEYS;
            ++segment_;
        }
    }

    static constexpr int KEYS = Tiles<T, D>::KEYS;
    const Tiles<T, D>& tiles_;
    const int step_;
    int segment_ = 0, first_ = 0;
};

// Adds the weights of a tile times its values, once all threads have written their weights. Only values that some row of
// the block does not see have to be looked at.
template <class T, int D>
__device__ void add_values(const Tiles<T, D>& tiles, Products<T, D>& products, const KeyTile& tile,
                           const typename Tiles<T, D>::Row* v) {
    if constexpr (TENSOR_CORES<T>) {
        bool broken = false;
        if (tile.mixed) {
            broken = __syncthreads_or(!products.are_finite(v));
        } else {
            __syncthreads();
        }
        if (!broken) return products.add(tiles, v);
    } else {
        __syncthreads();
    }
    products.add_seen(tiles, v, tile);
}

// The whole work of a block. `rows` has `count` query rows and row(number) of each; their results go to out [places,
// head_dim] and lse [places].
template <class T, int D, class Rows>
__device__ void attend(const Rows& rows, const KeyList<T>& keys, int head_dim, Part part, Scale scale) {
    using Memory = Tiles<T, D>;
    Memory& tiles = *new (shared_memory) Memory;
    if (threadIdx.x < WARP) list_rows(tiles, rows);
    __syncthreads();
    Products<T, D> products;
    Softmax<T, D> softmax;
    TileWalk<T, D> walk(tiles, part);
    KeyLoader<T, D> loader(keys, head_dim);
    KeyTile next = walk.take();
    const bool empty = next.count == 0;
    loader.find(next);
    if (!empty) {
        load_queries(tiles, rows.count, head_dim);
        loader.load(tiles.stages[0]);
    }
    KeyTile after = walk.take();
    loader.find(after);
    for (int stage = 0; next.count > 0; stage ^= 1) {
        const KeyTile tile = next;
        next = after;
        wait_for_copies();
        __syncthreads();  // all copies of the tile are there, and no thread still reads the previous one
        if (next.count > 0) loader.load(tiles.stages[stage ^ 1]);
        after = walk.take();
        loader.find(after);
        products.scores(tiles, tiles.stages[stage].k);
        __syncthreads();
        softmax.take(tiles, tile, scale);
        add_values(tiles, products, tile, tiles.stages[stage].v);
    }
    const float lse = softmax.finish(tiles);
    const int row = threadIdx.x / Memory::ROW_THREADS;
    if (threadIdx.x % Memory::ROW_THREADS == 0 && row < rows.count) rows.lse[tiles.rows[row].place] = lse;
    if (empty && rows.ONLY_LSE_IF_EMPTY) return;
    __syncthreads();
    products.finish(tiles);
    __syncthreads();
    store_results(tiles, rows.count, head_dim, rows.out);
}

}  // namespace
}  // namespace mmbdhs
