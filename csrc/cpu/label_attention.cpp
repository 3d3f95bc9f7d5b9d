#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "attention.h"
#include "instruction_sets.h"
#include "kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

constexpr int64_t kGroups = 16;  // backward runs at most so many tasks at a time, whatever the number of threads

// Zeroed memory for each worker, in a row.
class Workspaces {
 public:
  Workspaces(int threads, int64_t bytes)
      : bytes_(bytes),
        memory_(static_cast<char*>(::operator new(static_cast<size_t>(threads * bytes), std::align_val_t{64}))) {
    std::fill_n(memory_.get(), threads * bytes, char{0});
  }
  void* of(int worker) { return memory_.get() + worker * bytes_; }

 private:
  struct Delete {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  int64_t bytes_;
  std::unique_ptr<char, Delete> memory_;
};

// The texts, longest first: what is left to the end is short, so that no thread waits long for another.
std::vector<int64_t> longest_first(const AttentionInput& in) {
  std::vector<int64_t> tokens(static_cast<size_t>(in.batch)), texts(static_cast<size_t>(in.batch));
  for (int64_t text = 0; text < in.batch; ++text) {
    const bool* mask = in.mask + text * in.tokens;
    tokens[static_cast<size_t>(text)] = std::count(mask, mask + in.tokens, true);
    texts[static_cast<size_t>(text)] = text;
  }
  std::stable_sort(texts.begin(), texts.end(), [&](int64_t a, int64_t b) {
    return tokens[static_cast<size_t>(a)] > tokens[static_cast<size_t>(b)];
  });
  return texts;
}

double nanoseconds(const AttentionInput& in, double products) {
  return products * 0.02 * static_cast<double>(in.tokens) * static_cast<double>(in.size);
}

// The candidates of all texts, sorted by label in each text and cut by label into groups of about the same size.
class Groups {
 public:
  Groups(const AttentionInput& in, const int64_t* rows, int64_t num_rows, int threads)
      : count_(std::max<int64_t>(1, std::min(kGroups, in.width / 128))),
        candidates_(static_cast<size_t>(in.batch * in.width)),
        begin_(static_cast<size_t>(in.batch * (count_ + 1))) {
    std::vector<int64_t> sizes(static_cast<size_t>(in.batch));
    threads = useful_threads(in.batch, 100.0 * static_cast<double>(in.width), threads);
    parallel_for(in.batch, 1, threads, [&](int, int64_t text, int64_t) {
      sizes[static_cast<size_t>(text)] = collect(in, text, rows, num_rows);
    });
    const std::vector<int64_t> borders = label_borders(in, sizes);
    for (int64_t text = 0; text < in.batch; ++text) {
      const Candidate* own = candidates_.data() + text * in.width;
      const Candidate* end = own + sizes[static_cast<size_t>(text)];
      for (int64_t group = 0; group <= count_; ++group) {
        const int64_t border = borders[static_cast<size_t>(group)];
        const Candidate* begin =
            std::partition_point(own, end, [&](const Candidate& each) { return each.label < border; });
        begin_[static_cast<size_t>(text * (count_ + 1) + group)] = begin - candidates_.data();
      }
    }
  }

  int64_t count() const { return count_; }
  int64_t begin(int64_t text, int64_t group) const { return begin_[static_cast<size_t>(text * (count_ + 1) + group)]; }
  const Candidate* candidate(int64_t at) const { return candidates_.data() + at; }

 private:
  // The candidates of a text that are not padding; returns their number.
  int64_t collect(const AttentionInput& in, int64_t text, const int64_t* rows, int64_t num_rows) {
    Candidate* own = candidates_.data() + text * in.width;
    int64_t size = 0;
    for (int64_t column = 0; column < in.width; ++column) {
      const int64_t label = in.candidates == nullptr ? column : in.candidates[text * in.width + column];
      if (label >= 0) own[size++] = {column, label, label};
    }
    const auto before = [](const Candidate& a, const Candidate& b) {
      return a.label != b.label ? a.label < b.label : a.column < b.column;
    };
    if (in.candidates != nullptr) std::sort(own, own + size, before);
    for (int64_t i = 0; rows != nullptr && i < size; ++i) {
      own[i].row = std::lower_bound(rows, rows + num_rows, own[i].label) - rows;
    }
    return size;
  }

  // Group g holds the labels from borders[g] to below borders[g + 1].
  std::vector<int64_t> label_borders(const AttentionInput& in, const std::vector<int64_t>& sizes) const {
    std::vector<int64_t> labels, borders(1, 0);
    if (in.candidates == nullptr) {
      for (int64_t group = 1; group < count_; ++group) borders.push_back(in.width * group / count_);
    } else {
      labels.reserve(candidates_.size());
      for (int64_t text = 0; text < in.batch; ++text) {
        const Candidate* own = candidates_.data() + text * in.width;
        for (int64_t i = 0; i < sizes[static_cast<size_t>(text)]; ++i) labels.push_back(own[i].label);
      }
      auto from = labels.begin();
      for (int64_t group = 1; group < count_ && !labels.empty(); ++group) {
        const auto border = labels.begin() + static_cast<int64_t>(labels.size()) * group / count_;
        std::nth_element(from, border, labels.end());
        borders.push_back(*border);
        from = border;
      }
    }
    borders.resize(static_cast<size_t>(count_ + 1), std::numeric_limits<int64_t>::max());
    return borders;
  }

  int64_t count_;
  std::vector<Candidate> candidates_;
  std::vector<int64_t> begin_;
};

}  // namespace

void label_attention(const AttentionInput& in, void* out, int set, int threads) {
  const auto& kernels = kernels_for<AttentionKernels>(static_cast<InstructionSet>(set));
  // Blocks of tiles, enough of them that all threads end at about the same time.
  const int64_t wanted = in.batch == 0 ? 1 : (16 * threads + in.batch - 1) / in.batch;
  const int64_t tiles = (in.width + kernels.tile - 1) / kernels.tile;
  const int64_t block = std::max<int64_t>(1, tiles / wanted) * kernels.tile;
  const int64_t blocks = (in.width + block - 1) / block;
  threads = useful_threads(in.batch * blocks, nanoseconds(in, 2.0 * static_cast<double>(block)), threads);
  const std::vector<int64_t> texts = longest_first(in);
  Workspaces workspaces(threads, kernels.workspace(in, false));
  parallel_for(in.batch * blocks, 1, threads, [&](int worker, int64_t task, int64_t) {
    const int64_t begin = task % blocks * block;
    const int64_t text = texts[static_cast<size_t>(task / blocks)];
    kernels.forward(in, text, begin, std::min(in.width, begin + block), out, workspaces.of(worker));
  });
}

void label_attention_backward(const AttentionInput& in, const void* grad, const int64_t* rows, int64_t num_rows,
                              float* grad_states, float* grad_queries, int set, int threads) {
  const auto& kernels = kernels_for<AttentionKernels>(static_cast<InstructionSet>(set));
  const Groups groups(in, rows, num_rows, threads);
  // A text's gradient is a sum over labels and a label's one over texts. Texts and labels are cut into groups; in each
  // round, no two tasks share a group of texts or one of labels, so that tasks add without locks and in an order that
  // does not depend on the threads.
  const int64_t text_groups = std::min(kGroups, in.batch);
  const int64_t rounds = std::max(text_groups, groups.count());
  const double work = nanoseconds(in, 7.0 * static_cast<double>(in.batch * in.width) / static_cast<double>(rounds));
  threads = static_cast<int>(std::min<int64_t>(std::min(text_groups, groups.count()),
                                               useful_threads(kGroups, work / static_cast<double>(kGroups), threads)));
  const std::vector<int64_t> texts = longest_first(in);
  Workspaces workspaces(threads, kernels.workspace(in, true));
  for (int64_t round = 0; round < rounds; ++round) {
    parallel_for(rounds, 1, threads, [&](int worker, int64_t task, int64_t) {
      const int64_t group = (task + round) % rounds;
      if (task >= text_groups || group >= groups.count()) return;
      for (int64_t i = in.batch * task / text_groups; i < in.batch * (task + 1) / text_groups; ++i) {
        const int64_t text = texts[static_cast<size_t>(i)];
        const int64_t begin = groups.begin(text, group);
        kernels.backward(in, text, groups.candidate(begin), groups.begin(text, group + 1) - begin, grad, grad_states,
                         grad_queries, workspaces.of(worker));
      }
    });
  }
}

}  // namespace xmplug
