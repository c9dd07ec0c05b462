// Splits the work of the attention ops into units for the kernels of this machine's instruction set, over threads.
#include "attention.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_kernels.h"

namespace mmbdhs {
namespace {

// From the least to the most capable.
const Kernels* const ALL_KERNELS[] = {
    &base::kernels,
#if defined(__x86_64__)
    &avx2::kernels,
    &avx512::kernels,
    &avx512_bf16::kernels,
#endif
};

const Kernels& choose_kernels() {
    const char* wanted = std::getenv("MMBDHS_ISA");
    const Kernels* best = nullptr;
    for (const Kernels* kernels : ALL_KERNELS) {
        if (kernels->supported() && (!wanted || !*wanted || wanted == std::string(kernels->name))) best = kernels;
    }
    if (!best) throw std::invalid_argument(std::string("MMBDHS_ISA: this machine has no '") + wanted + "' kernels");
    return *best;
}

const Kernels& live_kernels() {
    static const Kernels& kernels = choose_kernels();
    return kernels;
}

// The threads of a parent's pool do not live on in a forked child, and waiting for them would never end.
bool forked = false;
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

int usable(int threads) { return forked ? 1 : threads; }

Rows& thread_rows() {
    static thread_local auto rows = std::make_unique<Rows>();
    return *rows;
}

const char* element(const void* base, int64_t dtype, int64_t offset) {
    return static_cast<const char*>(base) + offset * (dtype == FLOAT32 ? 4 : 2);
}

void start(Rows& rows, int64_t head_dim, double scale, double softcap) {
    rows.head_dim = head_dim;
    rows.scale = float(scale);
    rows.softcap = float(softcap);
}

// Outputs that other parts of the same keys are yet to be merged with.
struct Partial {
    std::vector<float> out, largest, sum;

    Partial(int64_t rows, int64_t head_dim) : out(rows * head_dim), largest(rows), sum(rows) {}
    void take(const Rows& rows, int count, int64_t at) {
        for (int row = 0; row < count; ++row, ++at) {
            std::copy_n(rows.out[row], rows.head_dim, &out[at * rows.head_dim]);
            largest[at] = rows.largest[row];
            sum[at] = std::accumulate(rows.sums[row], std::end(rows.sums[row]), 0.0f);
        }
    }
};

// ---- shared prefix ---------------------------------------------------------------------------------------------

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
        const int64_t passes = std::max<int64_t>(1, int64_t(units_.size()) * a.kv_heads);
        parts_ = std::clamp<int64_t>(longest / (2 * TILE), 1, (threads_ + passes - 1) / passes);
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

    Rows& pass(const Job& job) const {
        Rows& rows = thread_rows();
        start(rows, a.head_dim, scale_, softcap_);
        const void* q[MAX_ROWS];
        for (int64_t row = 0; row < job.unit.count; ++row)
            q[row] = element(a.q, a.dtype, branch(job, row) * a.q_branch + query_head(job, row) * a.q_head);
        kernels_.begin[a.dtype](rows, int(job.unit.count), q);
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

    // Where a part begins. Most often there is but one, and nothing to divide.
    int64_t part_of(int64_t keys, int64_t part) const {
        return part == parts_ ? keys : part ? keys * part / parts_ : 0;
    }

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
        const int count = int(job(first).unit.count);
        Rows& rows = thread_rows();
        start(rows, a.head_dim, scale_, softcap_);
        const void* q[MAX_ROWS];
        std::fill_n(q, count, a.q);
        kernels_.begin[a.dtype](rows, count, q);  // clears the outputs
        for (int64_t part = first; part < first + parts_; ++part) {
            for (int row = 0; row < count; ++row) {
                const int64_t at = part * MAX_ROWS + row;
                kernels_.merge(rows, row, &partial.out[at * a.head_dim], partial.largest[at], partial.sum[at]);
            }
        }
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

// ---- masked ----------------------------------------------------------------------------------------------------

// The visible keys of each batch row, and how many of them come before each place.
struct VisibleKeys {
    std::vector<int32_t> index;   // [batch, keys], the first count(n, keys) of each row are used
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

// Rows first … of (query, head of the group) pairs over one key head.
void masked_block(const Masked& a, const VisibleKeys& seen, const Kernels& kernels, int64_t n, int64_t head,
                  int64_t first, Rows& rows) {
    const int64_t group = a.q_heads / a.kv_heads;
    const int count = int(std::min<int64_t>(MAX_ROWS, a.queries * group - first));
    const void* q[MAX_ROWS];
    void* out[MAX_ROWS];
    float* lse[MAX_ROWS];
    int64_t limits[MAX_ROWS];
    for (int row = 0; row < count; ++row) {
        const int64_t query = (first + row) / group, query_head = head * group + (first + row) % group;
        const int64_t at = (n * a.q_heads + query_head) * a.queries + query;
        q[row] = element(a.q, a.dtype, n * a.q_batch + query_head * a.q_head + query * a.q_row);
        out[row] = const_cast<char*>(element(a.out, a.dtype, at * a.head_dim));
        lse[row] = a.lse + at;
        limits[row] = seen.before[n * (a.keys + 1) + (a.causal ? a.keys - a.queries + query + 1 : a.keys)];
    }
    const Keys keys = {element(a.k, a.dtype, n * a.k_batch + head * a.k_head),
                       element(a.v, a.dtype, n * a.v_batch + head * a.v_head),
                       a.k_row,
                       a.v_row,
                       seen.index.data() + n * a.keys,
                       a.keys};
    kernels.begin[a.dtype](rows, count, q);
    kernels.extend[a.dtype](rows, 0, count, keys, limits, nullptr);
    kernels.finish[a.dtype](rows, count, out, lse);
}

}  // namespace

bool lengths_fit(const int32_t* prefix_count, const int32_t* suffix_length, int64_t branches, const int32_t* visible,
                 int64_t prefix_keys, const int32_t* example, const int32_t* prefix_offsets, int64_t examples,
                 int64_t prefix_rows, int64_t suffix_rows) {
    const auto within = [](const int32_t* values, int64_t count, int64_t highest) {
        return std::all_of(values, values + count, [&](int32_t value) { return 0 <= value && value <= highest; });
    };
    if (!within(suffix_length, branches, suffix_rows)) return false;
    if (visible && !within(visible, prefix_keys, prefix_rows - 1)) return false;
    if (!example) return within(prefix_count, branches, prefix_keys);
    if (examples < 0 || !within(prefix_offsets, examples + 1, prefix_keys)) return false;
    if (!std::is_sorted(prefix_offsets, prefix_offsets + examples + 1)) return false;
    if (!within(example, branches, examples - 1)) return false;
    for (int64_t b = 0; b < branches; ++b) {
        const int32_t* offset = prefix_offsets + example[b];
        if (!within(prefix_count + b, 1, offset[1] - offset[0])) return false;
    }
    return true;
}

void shared_prefix_attention(const SharedPrefix& arguments, double scale, double softcap, int threads) {
    SharedPrefixRun(arguments, scale, softcap, usable(threads)).run();
}

void masked_attention(const Masked& a, double scale, double softcap, int threads) {
    const Kernels& kernels = live_kernels();
    const VisibleKeys seen(a);
    const int64_t blocks = (a.queries * (a.q_heads / a.kv_heads) + MAX_ROWS - 1) / MAX_ROWS;
    const int64_t tasks = a.batch * a.kv_heads * blocks;
    [[maybe_unused]] const int live_threads = usable(threads);
#pragma omp parallel for schedule(dynamic) num_threads(live_threads) if (tasks > 1)
    for (int64_t task = 0; task < tasks; ++task) {
        // The last queries of a causal row have the most keys: they go first, so that no thread is left with one.
        const int64_t block = blocks - 1 - task % blocks, head = task / blocks % a.kv_heads;
        Rows& rows = thread_rows();
        start(rows, a.head_dim, scale, softcap);
        masked_block(a, seen, kernels, task / blocks / a.kv_heads, head, block * MAX_ROWS, rows);
    }
}

const char* instruction_set() { return live_kernels().name; }

double multiply_add_rounds(int64_t rounds) { return live_kernels().multiply_add(rounds); }

}  // namespace mmbdhs
