// The attention of one decoding step: divided into jobs, which the threads share.
#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include "attention/cpu/attention_parts.h"

namespace mmbdhs {
namespace {

// Query rows that read the same prefix keys together: branches of one example, each with the query heads of a group.
struct Unit {
    int64_t first, count;  // of its rows
    int64_t prefix_begin;  // of its example's keys
};

// A query row of a key head: a branch, and a query head of its group.
struct Row {
    int64_t branch, head;
};

// The rows of a unit with a part of their keys in one key head.
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
            each_job([&](int64_t job, RowState& state) { finish(state, job); });
            return;
        }
        // There are fewer heads than threads: each thread takes a part of the keys, and the parts are merged.
        Partial partial(jobs_ * MAX_ROWS, a.head_dim);
        each_job([&](int64_t job, const RowState& state) {
            partial.take(state, int(this->job(job).unit.count), job * MAX_ROWS);
        });
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
        for (int64_t job = claimed_++; job < jobs_; job = claimed_++) done(job, attend(this->job(job)));
    }

    Job job(int64_t number) const {
        const int64_t unit_head = number / parts_;
        return {units_[unit_head / a.kv_heads], unit_head % a.kv_heads, number % parts_};
    }
    int64_t branch(const Job& job, int64_t row) const { return rows_[job.unit.first + row].branch; }
    int64_t query_head(const Job& job, int64_t row) const {
        return job.head * group_ + rows_[job.unit.first + row].head;
    }

    // This thread's state with the queries of a job, which have seen no keys yet.
    RowState& load_queries(const Job& job) const {
        RowState& state = thread_state();
        set_options(state, a.head_dim, scale_, softcap_);
        const void* q[MAX_ROWS];
        for (int64_t row = 0; row < job.unit.count; ++row)
            q[row] = element(a.q, a.dtype, branch(job, row) * a.q_branch + query_head(job, row) * a.q_head);
        kernels_.load_queries[a.dtype](state, int(job.unit.count), q);
        return state;
    }

    // Attends from a job's rows to its part of their prefix and of each suffix.
    RowState& attend(const Job& job) const {
        RowState& state = load_queries(job);
        extend_prefix(state, job);
        for (int64_t row = 0; row < job.unit.count; row = next_branch(job, row)) extend_suffix(state, job, row);
        return state;
    }

    void extend_prefix(RowState& state, const Job& job) const {
        const Keys keys = prefix(job), next = keys_after(job, 0);
        const int64_t begin = part_of(most_prefix(job.unit), job.part);
        int64_t limits[MAX_ROWS];
        for (int64_t row = 0; row < job.unit.count; ++row)
            limits[row] = std::clamp<int64_t>(a.prefix_count[branch(job, row)] - begin, 0, keys.count);
        kernels_.extend[a.dtype](state, 0, int(job.unit.count), keys, limits, &next);
    }

    // Attends from the rows of one branch, which begin at `row`, to its suffix.
    void extend_suffix(RowState& state, const Job& job, int64_t row) const {
        const int64_t last = next_branch(job, row);
        const Keys keys = suffix(job, row);
        if (keys.count == 0) return;
        const Keys next = keys_after(job, last);
        int64_t limits[MAX_ROWS];
        std::fill(limits + row, limits + last, keys.count);
        kernels_.extend[a.dtype](state, int(row), int(last), keys, limits, &next);
    }

    // The keys that this thread reads next: the first suffix from `row` on, or the prefix of the job that it will most
    // likely do next.
    Keys keys_after(const Job& job, int64_t row) const {
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

    void finish(const RowState& state, int64_t number) const {
        const Job job = this->job(number);
        void* out[MAX_ROWS];
        float* lse[MAX_ROWS];
        for (int64_t row = 0; row < job.unit.count; ++row) {
            const int64_t at = branch(job, row) * a.q_heads + query_head(job, row);
            out[row] = const_cast<char*>(element(a.out, a.dtype, at * a.head_dim));
            lse[row] = a.lse + at;
        }
        kernels_.finish[a.dtype](state, int(job.unit.count), out, lse);
    }

    // Merges the parts of the same rows, whose first job is `first`.
    void merge(const Partial& partial, int64_t first) const {
        const Job job = this->job(first);
        RowState& state = load_queries(job);
        merge_parts(kernels_, partial, first, parts_, state, int(job.unit.count));
        finish(state, first);
    }

    const SharedPrefix& a;
    const double scale_, softcap_;
    const int threads_;
    const int64_t group_;
    const Kernels& kernels_ = live_kernels();
    std::vector<Row> rows_;  // the rows of all units
    std::vector<Unit> units_;
    int64_t parts_ = 1, jobs_ = 0;  // parts of the keys of each unit and key head; all jobs
    std::atomic<int64_t> claimed_{0};
};

}  // namespace

void shared_prefix_attention(const SharedPrefix& arguments, double scale, double softcap, int threads) {
    SharedPrefixRun(arguments, scale, softcap, usable(threads)).run();
}

}  // namespace mmbdhs
