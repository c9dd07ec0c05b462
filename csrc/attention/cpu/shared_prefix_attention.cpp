// Splits one decoding step's attention into units for the kernels of this machine, over threads.
#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include "attention/cpu/attention_parts.h"

namespace mmbdhs {
namespace {

// Query rows of one key head that share a pass: branches of one example, each with the heads of its group.
struct Unit {
    int64_t first, count;  // rows
    int64_t prefix_begin;  // of the example's keys
};

// A query row of one key head: a branch, and which query head of the group.
struct Row {
    int64_t branch, head;
};

// The rows of a unit over a part of their keys in one key head.
struct Job {
    const Unit& unit;
    int64_t head, part;
};

class SharedPrefixRun {
  public:
    SharedPrefixRun(const SharedPrefix& arguments, double scale, double softcap, int threads)
        : a(arguments), scale_(scale), softcap_(softcap), threads_(threads), group_(a.q_heads / a.kv_heads) {
        plan();
    }

    void run() {
        if (parts_ == 1) {
            each_job([&](int64_t job, Rows& rows) { finish(rows, job); });
            return;
        }
        // Fewer heads than threads: each takes a part of the keys, and the parts are merged.
        Partial partial(jobs_ * MAX_ROWS, a.head_dim);
        each_job(
            [&](int64_t job, const Rows& rows) { partial.take(rows, int(this->job(job).unit.count), job * MAX_ROWS); });
        for (int64_t first = 0; first < jobs_; first += parts_) merge(partial, first);
    }

  private:
    void plan() {
        std::vector<int64_t> order(a.branches);
        std::iota(order.begin(), order.end(), 0);
        const auto example = [&](int64_t branch) { return a.example ? a.example[branch] : 0; };
        std::stable_sort(order.begin(), order.end(), [&](auto x, auto y) { return example(x) < example(y); });
        for (int64_t begin = 0, end; begin < a.branches; begin = end) {
            const int32_t here = example(order[begin]);
            for (end = begin; end < a.branches && example(order[end]) == here;) ++end;
            for (int64_t row = begin * group_; row < end * group_; row += MAX_ROWS)
                units_.push_back({row, std::min<int64_t>(MAX_ROWS, end * group_ - row),
                                  a.prefix_offsets ? a.prefix_offsets[here] : 0});
        }
        for (int64_t branch : order)
            for (int64_t head = 0; head < group_; ++head) rows_.push_back({branch, head});
        int64_t longest = 0;
        for (int64_t b = 0; b < a.branches; ++b)
            longest = std::max<int64_t>(longest, int64_t{a.prefix_count[b]} + a.suffix_length[b]);
        parts_ = parts_of(longest, int64_t(units_.size()) * a.kv_heads, threads_);
        jobs_ = int64_t(units_.size()) * a.kv_heads * parts_;
    }

    template <class Done>
    void each_job(const Done& done) {
#pragma omp parallel num_threads(threads_) if (jobs_ > 1)
        for (int64_t job = claimed_++; job < jobs_; job = claimed_++) done(job, pass(this->job(job)));
    }

    Job job(int64_t number) const {
        const int64_t pass = number / parts_;
        return {units_[pass / a.kv_heads], pass % a.kv_heads, number % parts_};
    }
    int64_t branch(const Job& job, int64_t row) const { return rows_[job.unit.first + row].branch; }
    int64_t query_head(const Job& job, int64_t row) const {
        return job.head * group_ + rows_[job.unit.first + row].head;
    }

    // This thread's rows with the queries of a job, which have seen nothing yet.
    Rows& begin(const Job& job) const {
        Rows& rows = thread_rows();
        start(rows, a.head_dim, scale_, softcap_);
        const void* q[MAX_ROWS];
        for (int64_t row = 0; row < job.unit.count; ++row)
            q[row] = element(a.q, a.dtype, branch(job, row) * a.q_branch + query_head(job, row) * a.q_head);
        kernels_.begin[a.dtype](rows, int(job.unit.count), q);
        return rows;
    }

    Rows& pass(const Job& job) const {
        Rows& rows = begin(job);
        extend_prefix(rows, job);
        for (int64_t row = 0; row < job.unit.count; row = next_branch(job, row)) extend_suffix(rows, job, row);
        return rows;
    }

    void extend_prefix(Rows& rows, const Job& job) const {
        const Keys keys = prefix(job), next = after(job, 0);
        const int64_t begin = part_of(most_prefix(job.unit), job.part);
        int64_t limits[MAX_ROWS];
        for (int64_t row = 0; row < job.unit.count; ++row)
            limits[row] = std::clamp<int64_t>(a.prefix_count[branch(job, row)] - begin, 0, keys.count);
        kernels_.extend[a.dtype](rows, 0, int(job.unit.count), keys, limits, &next);
    }

    // The rows of one branch, from `row` on.
    void extend_suffix(Rows& rows, const Job& job, int64_t row) const {
        const int64_t last = next_branch(job, row);
        const Keys keys = suffix(job, row);
        if (keys.count == 0) return;
        const Keys next = after(job, last);
        int64_t limits[MAX_ROWS];
        std::fill(limits + row, limits + last, keys.count);
        kernels_.extend[a.dtype](rows, int(row), int(last), keys, limits, &next);
    }

    // Keys of suffixes from `row` on; after the last, those of the job that this thread will most likely do next.
    Keys after(const Job& job, int64_t row) const {
        for (; row < job.unit.count; row = next_branch(job, row)) {
            if (const Keys keys = suffix(job, row); keys.count > 0) return keys;
        }
        const int64_t next = claimed_;
        return next < jobs_ ? prefix(this->job(next)) : Keys{};
    }

    int64_t next_branch(const Job& job, int64_t row) const {
        return std::min(job.unit.count, row + group_ - rows_[job.unit.first + row].head);
    }

    int64_t part_of(int64_t keys, int64_t part) const { return part_begin(keys, part, parts_); }

    int64_t most_prefix(const Unit& unit) const {
        int64_t most = 0;
        for (int64_t row = unit.first; row < unit.first + unit.count; row += group_ - rows_[row].head)
            most = std::max<int64_t>(most, a.prefix_count[rows_[row].branch]);
        return most;
    }

    Keys prefix(const Job& job) const {
        const int64_t most = most_prefix(job.unit), begin = part_of(most, job.part);
        const int64_t from = job.unit.prefix_begin + begin, row = a.visible ? 0 : from;
        return {element(a.k_prefix, a.dtype, job.head * a.kp_head + row * a.kp_row),
                element(a.v_prefix, a.dtype, job.head * a.vp_head + row * a.vp_row),
                a.kp_row,
                a.vp_row,
                a.visible ? a.visible + from : nullptr,
                part_of(most, job.part + 1) - begin};
    }

    Keys suffix(const Job& job, int64_t row) const {
        const int64_t branch = this->branch(job, row), length = a.suffix_length[branch];
        const int64_t begin = part_of(length, job.part), end = part_of(length, job.part + 1);
        return {element(a.k_suffix, a.dtype, branch * a.ks_branch + job.head * a.ks_head + begin * a.ks_row),
                element(a.v_suffix, a.dtype, branch * a.vs_branch + job.head * a.vs_head + begin * a.vs_row),
                a.ks_row,
                a.vs_row,
                nullptr,
                end - begin};
    }

    void finish(const Rows& rows, int64_t number) const {
        const Job job = this->job(number);
        void* out[MAX_ROWS];
        float* lse[MAX_ROWS];
        for (int64_t row = 0; row < job.unit.count; ++row) {
            const int64_t at = branch(job, row) * a.q_heads + query_head(job, row);
            out[row] = const_cast<char*>(element(a.out, a.dtype, at * a.head_dim));
            lse[row] = a.lse + at;
        }
        kernels_.finish[a.dtype](rows, int(job.unit.count), out, lse);
    }

    // The parts of one pass, of which `first` is the first.
    void merge(const Partial& partial, int64_t first) const {
        const Job job = this->job(first);
        Rows& rows = begin(job);
        merge_parts(kernels_, partial, first, parts_, rows, int(job.unit.count));
        finish(rows, first);
    }

    const SharedPrefix& a;
    const double scale_, softcap_;
    const int threads_;
    const int64_t group_;
    const Kernels& kernels_ = live_kernels();
    std::vector<Row> rows_;  // the rows of all units
    std::vector<Unit> units_;
    int64_t parts_ = 1, jobs_ = 0;  // parts of the keys of each pass; passes times parts
    std::atomic<int64_t> claimed_{0};
};

}  // namespace

void shared_prefix_attention(const SharedPrefix& arguments, double scale, double softcap, int threads) {
    SharedPrefixRun(arguments, scale, softcap, usable(threads)).run();
}

}  // namespace mmbdhs
