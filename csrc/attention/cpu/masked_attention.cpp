// Attention over a sequence in which most keys are hidden: divided into tasks, which the threads share.
#include <algorithm>
#include <vector>

#include "attention/cpu/attention_parts.h"

namespace mmbdhs {
namespace {

// The visible keys of each batch row, and how many of them come before each key.
struct VisibleKeys {
    std::vector<int32_t> index;   // [batch, keys]; in row n only the first before[n, keys] are used
    std::vector<int64_t> before;  // [batch, keys + 1]

    explicit VisibleKeys(const Masked& a) : index(a.batch * a.keys), before(a.batch * (a.keys + 1)) {
        for (int64_t n = 0; n < a.batch; ++n) {
            int64_t count = 0, *row = &before[n * (a.keys + 1)];
            for (int64_t key = 0; key < a.keys; ++key) {
                row[key] = count;
                if (a.visible[n * a.keys + key]) index[n * a.keys + count++] = int32_t(key);
            }
            row[a.keys] = count;
        }
    }
};

// Up to MAX_ROWS (query, head of the group) pairs over one key head of one batch row.
struct Task {
    int64_t batch_row, head;
    int64_t query[MAX_ROWS], query_head[MAX_ROWS];
    int count;
};

class MaskedRun {
  public:
    MaskedRun(const Masked& arguments, double scale, double softcap, int threads)
        : a(arguments), scale_(scale), softcap_(softcap), threads_(threads) {
        parts_ = parts_of(a.keys, tasks_, threads);
    }

    void run() {
        if (parts_ == 1) {
            each(tasks_, [&](int64_t number, RowState& state) {
                const Task task = this->task(number);
                attend(state, task, 0);
                finish(state, task);
            });
            return;
        }
        Partial partial(tasks_ * parts_ * MAX_ROWS, a.head_dim);
        each(tasks_ * parts_, [&](int64_t job, RowState& state) {
            const Task task = this->task(job / parts_);
            attend(state, task, job % parts_);
            partial.take(state, task.count, job * MAX_ROWS);
        });
        each(tasks_, [&](int64_t number, RowState& state) {
            const Task task = this->task(number);
            load_queries(state, task);
            merge_parts(kernels_, partial, number * parts_, parts_, state, task.count);
            finish(state, task);
        });
    }

  private:
    template <class Do>
    void each(int64_t jobs, const Do& run_one) const {
#pragma omp parallel for schedule(dynamic) num_threads(threads_) if (jobs > 1)
        for (int64_t job = 0; job < jobs; ++job) run_one(job, thread_state());
    }

    // The last queries of a causal row have the most keys. They come first, so that no thread gets a long task at the
    // end.
    Task task(int64_t number) const {
        const int64_t first = (blocks_ - 1 - number % blocks_) * MAX_ROWS, group = a.q_heads / a.kv_heads;
        Task task;
        task.batch_row = number / blocks_ / a.kv_heads;
        task.head = number / blocks_ % a.kv_heads;
        task.count = int(std::min<int64_t>(MAX_ROWS, a.queries * group - first));
        for (int row = 0; row < task.count; ++row) {
            task.query[row] = (first + row) / group;
            task.query_head[row] = task.head * group + (first + row) % group;
        }
        return task;
    }

    void load_queries(RowState& state, const Task& task) const {
        set_options(state, a.head_dim, scale_, softcap_);
        const void* q[MAX_ROWS];
        for (int row = 0; row < task.count; ++row) {
            const int64_t head = task.batch_row * a.q_batch + task.query_head[row] * a.q_head;
            q[row] = element(a.q, a.dtype, head + task.query[row] * a.q_row);
        }
        kernels_.load_queries[a.dtype](state, task.count, q);
    }

    // Attends from a task's rows to a part of their keys.
    void attend(RowState& state, const Task& task, int64_t part) const {
        load_queries(state, task);
        const int64_t n = task.batch_row, *before = &seen_.before[n * (a.keys + 1)], most = before[a.keys];
        const int64_t from = part_begin(most, part, parts_), to = part_begin(most, part + 1, parts_);
        int64_t limits[MAX_ROWS];
        for (int row = 0; row < task.count; ++row) {
            const int64_t keys = a.causal ? a.keys - a.queries + task.query[row] + 1 : a.keys;
            limits[row] = std::clamp<int64_t>(before[keys] - from, 0, to - from);
        }
        const Keys keys = {element(a.k, a.dtype, n * a.k_batch + task.head * a.k_head),
                           element(a.v, a.dtype, n * a.v_batch + task.head * a.v_head),
                           a.k_row,
                           a.v_row,
                           seen_.index.data() + n * a.keys + from,
                           to - from};
        kernels_.extend[a.dtype](state, 0, task.count, keys, limits, nullptr);
    }

    void finish(const RowState& state, const Task& task) const {
        void* out[MAX_ROWS];
        float* lse[MAX_ROWS];
        for (int row = 0; row < task.count; ++row) {
            const int64_t head = task.batch_row * a.q_heads + task.query_head[row];
            const int64_t at = head * a.queries + task.query[row];
            out[row] = const_cast<char*>(element(a.out, a.dtype, at * a.head_dim));
            lse[row] = a.lse + at;
        }
        kernels_.finish[a.dtype](state, task.count, out, lse);
    }

    const Masked& a;
    const double scale_, softcap_;
    const int threads_;
    const int64_t blocks_ = (a.queries * (a.q_heads / a.kv_heads) + MAX_ROWS - 1) / MAX_ROWS;
    const int64_t tasks_ = a.batch * a.kv_heads * blocks_;
    const Kernels& kernels_ = live_kernels();
    const VisibleKeys seen_{a};
    int64_t parts_ = 1;  // of the keys of each task
};

}  // namespace

void masked_attention(const Masked& arguments, double scale, double softcap, int threads) {
    MaskedRun(arguments, scale, softcap, usable(threads)).run();
}

}  // namespace mmbdhs
