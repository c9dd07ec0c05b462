// Both attention ops on small cases, compared with their definition in double precision. Whoever includes this file
// defines narrow<T>(float) and wide(T) for its element types, and a machine that runs the ops:
//
//     const X* give(const std::vector<X>&)      the same numbers where the ops can read them
//     X* room(std::vector<X>&)                  room for results
//     void run(const SharedPrefix& or const Masked&, const Case&)      writes the results into the vectors
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "attention/attention.h"

namespace mmbdhs {
namespace {

constexpr int64_t GROUP = 3, KV_HEADS = 2, Q_HEADS = GROUP * KV_HEADS;

struct Case {
    DType dtype;
    double tolerance;
    int64_t head_dim;
    double softcap;
    int64_t spare;  // elements between the rows of keys and values
    int threads;    // of a CPU

    double scale() const { return 1 / std::sqrt(double(head_dim)); }
};

// Normal numbers: rows of `width`, with `spare` NaN after each.
template <class T>
class Normal {
  public:
    std::vector<T> operator()(int64_t rows, int64_t width, int64_t spare = 0) {
        std::vector<T> numbers(rows * (width + spare), narrow<T>(NAN));
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t at = 0; at < width; ++at) numbers[row * (width + spare) + at] = narrow<T>(normal_(chance_));
        return numbers;
    }

  private:
    std::mt19937 chance_{1};
    std::normal_distribution<float> normal_;
};

// A query row, and the addresses of its keys and values.
template <class T>
struct Row {
    const T* q;
    std::vector<const T*> k, v;
};

// Whether the results of a row are right: NaN only where the definition gives NaN.
template <class T>
bool right(const Row<T>& row, const Case& c, const T* out, float lse) {
    std::vector<double> truth(c.head_dim);
    double sum = 0;
    for (size_t key = 0; key < row.k.size(); ++key) {
        double score = 0;
        for (int64_t d = 0; d < c.head_dim; ++d) score += wide(row.q[d]) * wide(row.k[key][d]);
        score *= c.scale();
        if (c.softcap > 0) score = c.softcap * std::tanh(score / c.softcap);
        const double weight = std::exp(score);
        sum += weight;
        for (int64_t d = 0; d < c.head_dim; ++d) truth[d] += weight * wide(row.v[key][d]);
    }
    bool good = sum > 0 ? std::fabs(lse - std::log(sum)) < 1e-5 : lse == -INFINITY;
    for (int64_t d = 0; d < c.head_dim; ++d) {
        const double wanted = sum > 0 ? truth[d] / sum : 0, got = wide(out[d]);
        good = good && (std::isnan(wanted) ? std::isnan(got) : std::fabs(got - wanted) < c.tolerance);
    }
    return good;
}

// Makes rows from `first` on NaN, which nobody may read.
template <class T>
void hide(std::vector<T>& rows, int64_t first, int64_t count, int64_t width) {
    std::fill_n(rows.begin() + first * width, count * width, narrow<T>(NAN));
}

template <class T, class Machine>
bool shared_prefix(const Case& c) {
    constexpr int64_t BRANCHES = 6, PREFIX = 300, SUFFIX = 71, EXAMPLES = 2, BROKEN = 62;
    const std::vector<int32_t> counts = {200, 0, 64, 65, 1, 90}, lengths = {0, 71, 16, 1, 7, 0};
    const std::vector<int32_t> example = {0, 0, 0, 0, 0, 1}, offsets = {0, 205, 295};
    const int64_t D = c.head_dim, width = D + c.spare;
    Normal<T> draw;
    const auto q = draw(BRANCHES * Q_HEADS, D);
    auto kp = draw(KV_HEADS * PREFIX, D, c.spare), vp = draw(KV_HEADS * PREFIX, D, c.spare);
    auto ks = draw(BRANCHES * KV_HEADS * SUFFIX, D, c.spare), vs = draw(BRANCHES * KV_HEADS * SUFFIX, D, c.spare);
    for (int64_t kv = 0; kv < KV_HEADS; ++kv) {
        hide(kp, kv * PREFIX + 200, 5, width), hide(vp, kv * PREFIX + 200, 5, width);
        vp[(kv * PREFIX + BROKEN) * width] = narrow<T>(NAN);  // seen by some branches only
    }
    for (int64_t at = 0; at < BRANCHES * KV_HEADS; ++at) {
        const int64_t length = lengths[at / KV_HEADS], first = at * SUFFIX + length;
        hide(ks, first, SUFFIX - length, width), hide(vs, first, SUFFIX - length, width);
    }
    std::vector<T> out(q.size());
    std::vector<float> lse(BRANCHES * Q_HEADS);
    Machine machine;
    SharedPrefix a = {};
    a.q = machine.give(q), a.k_prefix = machine.give(kp), a.v_prefix = machine.give(vp);
    a.k_suffix = machine.give(ks), a.v_suffix = machine.give(vs), a.out = machine.room(out), a.lse = machine.room(lse);
    a.prefix_count = machine.give(counts), a.suffix_length = machine.give(lengths);
    a.example = machine.give(example), a.prefix_offsets = machine.give(offsets), a.examples = EXAMPLES;
    a.dtype = c.dtype, a.branches = BRANCHES, a.q_heads = Q_HEADS, a.kv_heads = KV_HEADS, a.head_dim = D;
    a.prefix_rows = a.prefix_keys = PREFIX, a.suffix_rows = SUFFIX, a.q_branch = Q_HEADS * D, a.q_head = D;
    a.kp_row = a.vp_row = a.ks_row = a.vs_row = width, a.kp_head = a.vp_head = PREFIX * width;
    a.ks_head = a.vs_head = SUFFIX * width, a.ks_branch = a.vs_branch = KV_HEADS * SUFFIX * width;
    machine.run(a, c);
    bool good = true;
    for (int64_t at = 0; at < BRANCHES * Q_HEADS; ++at) {
        const int64_t b = at / Q_HEADS, kv = at % Q_HEADS / GROUP;
        Row<T> row = {&q[at * D], {}, {}};
        for (int64_t key = 0; key < counts[b] + lengths[b]; ++key) {
            const int64_t own = key - counts[b];
            const int64_t from = own < 0 ? kv * PREFIX + offsets[example[b]] + key : (b * KV_HEADS + kv) * SUFFIX + own;
            row.k.push_back((own < 0 ? kp : ks).data() + from * width);
            row.v.push_back((own < 0 ? vp : vs).data() + from * width);
        }
        good = right(row, c, &out[at * D], lse[at]) && good;
    }
    return good;
}

template <class T, class Machine>
bool masked(const Case& c, bool causal) {
    constexpr int64_t BATCH = 2, QUERIES = 13, KEYS = 150, BROKEN = 145;
    const int64_t D = c.head_dim, width = D + c.spare;
    Normal<T> draw;
    const auto q = draw(BATCH * Q_HEADS * QUERIES, D);
    auto k = draw(BATCH * KV_HEADS * KEYS, D, c.spare), v = draw(BATCH * KV_HEADS * KEYS, D, c.spare);
    std::vector<uint8_t> visible(BATCH * KEYS);
    // The first queries of the second row see nothing if causal.
    for (int64_t at = 0; at < BATCH * KEYS; ++at) visible[at] = at < KEYS ? at % 3 > 0 : at > 2 * KEYS - 10;
    for (int64_t at = 0; at < BATCH * KV_HEADS * KEYS; ++at) {
        if (visible[at / (KV_HEADS * KEYS) * KEYS + at % KEYS]) continue;
        hide(k, at, 1, width), hide(v, at, 1, width);
    }
    v[BROKEN * width] = narrow<T>(NAN);  // of the first row and head: seen by its last queries if causal
    std::vector<T> out(q.size());
    std::vector<float> lse(BATCH * Q_HEADS * QUERIES);
    Machine machine;
    Masked a = {};
    a.q = machine.give(q), a.k = machine.give(k), a.v = machine.give(v), a.visible = machine.give(visible);
    a.out = machine.room(out), a.lse = machine.room(lse), a.dtype = c.dtype, a.batch = BATCH, a.head_dim = D;
    a.q_heads = Q_HEADS, a.kv_heads = KV_HEADS, a.queries = QUERIES, a.keys = KEYS, a.causal = causal;
    a.q_batch = Q_HEADS * QUERIES * D, a.q_head = QUERIES * D, a.q_row = D, a.k_row = a.v_row = width;
    a.k_head = a.v_head = KEYS * width, a.k_batch = a.v_batch = KV_HEADS * KEYS * width;
    machine.run(a, c);
    bool good = true;
    for (int64_t at = 0; at < BATCH * Q_HEADS * QUERIES; ++at) {
        const int64_t head = at / QUERIES, n = head / Q_HEADS, kv = head % Q_HEADS / GROUP;
        const int64_t limit = causal ? KEYS - QUERIES + at % QUERIES + 1 : KEYS;
        Row<T> row = {&q[at * D], {}, {}};
        for (int64_t key = 0; key < limit; ++key) {
            if (!visible[n * KEYS + key]) continue;
            row.k.push_back(&k[((n * KV_HEADS + kv) * KEYS + key) * width]);
            row.v.push_back(&v[((n * KV_HEADS + kv) * KEYS + key) * width]);
        }
        good = right(row, c, &out[at * D], lse[at]) && good;
    }
    return good;
}

// Runs a case of both ops, and prints what was right.
template <class T, class Machine>
bool check(const char* name, const Case& c) {
    const bool results[] = {shared_prefix<T, Machine>(c), masked<T, Machine>(c, false), masked<T, Machine>(c, true)};
    std::printf("%s, head size %d, softcap %g, %d spare, %d thread(s): shared prefix %s, masked %s, causal %s\n", name,
                int(c.head_dim), c.softcap, int(c.spare), c.threads, results[0] ? "right" : "WRONG",
                results[1] ? "right" : "WRONG", results[2] ? "right" : "WRONG");
    std::fflush(stdout);
    return results[0] && results[1] && results[2];
}

}  // namespace
}  // namespace mmbdhs
