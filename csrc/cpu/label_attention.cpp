#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <vector>

#include "attention.h"
#include "instruction_sets.h"
#include "kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

constexpr int64_t kGroups = 16;  // of labels, whatever the number of threads, of which backward uses at most so many

// Memory for each worker, in a row, each with a head of zeros.
class Workspaces {
 public:
  Workspaces(int threads, int64_t bytes)
      : bytes_((bytes + 63) / 64 * 64),
        memory_(static_cast<char*>(::operator new(static_cast<size_t>(threads * bytes_), std::align_val_t{64}))) {
    for (int worker = 0; worker < threads; ++worker) std::fill_n(memory_.get() + worker * bytes_, 64, char{0});
  }
  void* of(int worker) { return memory_.get() + worker * bytes_; }

 private:
  struct Delete {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  int64_t bytes_;
  std::unique_ptr<char, Delete> memory_;
};

// How many tokens each text has.
std::vector<int64_t> lengths_of(const AttentionInput& in) {
  std::vector<int64_t> lengths;
  for (int64_t text = 0; text < in.batch; ++text) {
    const bool* mask = in.mask + text * in.tokens;
    lengths.push_back(std::count(mask, mask + in.tokens, true));
  }
  return lengths;
}

// The texts, longest first: what is left to the end is short, so that no thread waits long for another.
std::vector<int64_t> longest_first(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> texts(lengths.size());
  std::iota(texts.begin(), texts.end(), int64_t{0});
  std::stable_sort(texts.begin(), texts.end(), [&](int64_t a, int64_t b) {
    return lengths[static_cast<size_t>(a)] > lengths[static_cast<size_t>(b)];
  });
  return texts;
}

double nanoseconds(const AttentionInput& in, double products) {
  return products * 0.02 * static_cast<double>(in.tokens) * static_cast<double>(in.size);
}

// The candidates of all texts that have tokens, sorted by label in each text and cut by label into groups of about the
// same size. `texts`: the order in which each group will meet the texts.
class Groups {
 public:
  Groups(const AttentionInput& in, const std::vector<int64_t>& lengths, const std::vector<int64_t>& texts,
         const int64_t* rows, int64_t num_rows, int threads)
      : count_(std::max<int64_t>(1, std::min(kGroups, in.width / 128))),
        candidates_(static_cast<size_t>(in.batch * in.width)),
        begin_(static_cast<size_t>(in.batch * (count_ + 1))) {
    std::vector<int64_t> sizes(static_cast<size_t>(in.batch));
    threads = useful_threads(in.batch, 100.0 * static_cast<double>(in.width), threads);
    parallel_for(in.batch, 1, threads, [&](int, int64_t text, int64_t) {
      const auto at = static_cast<size_t>(text);
      sizes[at] = lengths[at] == 0 ? 0 : collect(in, text, rows, num_rows);
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
    count_parts(texts, num_rows, in.bfloat16_queries);
  }

  int64_t count() const { return count_; }
  int64_t begin(int64_t text, int64_t group) const { return begin_[static_cast<size_t>(text * (count_ + 1) + group)]; }
  int64_t end(int64_t text) const { return begin(text, count_); }
  const Candidate* candidate(int64_t at) const { return candidates_.data() + at; }
  bool has_parts(int64_t row) const { return parts_[static_cast<size_t>(row)] > 0; }
  int64_t sums() const { return sums_; }  // rows that have several parts

 private:
  // The candidates of a text that are not padding; returns their number.
  int64_t collect(const AttentionInput& in, int64_t text, const int64_t* rows, int64_t num_rows) {
    Candidate* own = candidates_.data() + text * in.width;
    int64_t size = 0;
    for (int64_t column = 0; column < in.width; ++column) {
      const int64_t label = in.candidates == nullptr ? column : in.candidates[text * in.width + column];
      if (label >= 0) own[size++] = {column, label, label, 0, false, false};
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

  // Which candidate is the first and which the last to give its row a part, and where the rows of several have sums:
  // apart, where the gradient is in another type.
  void count_parts(const std::vector<int64_t>& texts, int64_t num_rows, bool bfloat16) {
    parts_.resize(static_cast<size_t>(num_rows));
    for (const int64_t text : texts) {
      for (int64_t i = begin(text, 0); i < end(text); ++i) {
        Candidate& candidate = candidates_[static_cast<size_t>(i)];
        candidate.first = parts_[static_cast<size_t>(candidate.row)]++ == 0;
      }
    }
    std::vector<int64_t> sum(parts_.size(), -1);
    for (auto text = texts.rbegin(); text != texts.rend(); ++text) {
      for (int64_t i = end(*text); i-- > begin(*text, 0);) {
        Candidate& candidate = candidates_[static_cast<size_t>(i)];
        int64_t& at = sum[static_cast<size_t>(candidate.row)];
        candidate.last = at < 0;
        if (candidate.last) at = candidate.first ? 0 : sums_++;
        candidate.sum = bfloat16 ? at : candidate.row;
      }
    }
  }

  int64_t count_;
  std::vector<Candidate> candidates_;
  std::vector<int64_t> begin_;
  std::vector<int32_t> parts_;  // of each row
  int64_t sums_ = 0;
};

// Hands out the pairs of a text and a group of labels. A text's gradient is a sum over labels and a label's one over
// texts: each text meets the groups in order and each group the texts, so that workers add without locks and the sums
// do not depend on their number. A worker stays with its text as long as it can.
class Turns {
 public:
  Turns(int64_t texts, int64_t groups) : groups_(groups), done_(static_cast<size_t>(texts)), taken_(done_.size()) {}

  struct Turn {
    size_t text;
    int64_t group;
  };

  // Calls work(turn) until nothing is left.
  template <class Work>
  void take(const Work& work) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (size_t text = 0; first_ < done_.size();) {
      if (!ready(text)) text = find();
      if (text == done_.size()) {
        changed_.wait(lock);
        text = first_;
        continue;
      }
      taken_[text] = true;
      const Turn turn{text, done_[text]};
      lock.unlock();
      work(turn);
      lock.lock();
      taken_[text] = false;
      ++done_[text];
      while (first_ < done_.size() && done_[first_] == groups_) ++first_;
      changed_.notify_all();
    }
  }

 private:
  bool ready(size_t text) const {
    return text < done_.size() && !taken_[text] && done_[text] < groups_ &&
           (text == 0 || done_[text - 1] > done_[text]);
  }

  size_t find() const {
    for (size_t text = first_; text < done_.size(); ++text) {
      if (ready(text)) return text;
      if (done_[text] == 0) break;  // the texts behind it wait for it
    }
    return done_.size();
  }

  int64_t groups_;
  std::vector<int64_t> done_;  // groups of each text
  std::vector<char> taken_;
  size_t first_ = 0;  // that is not done
  std::mutex mutex_;
  std::condition_variable changed_;
};

// Memory that is not filled with anything.
using Floats = std::unique_ptr<float[]>;
Floats floats(int64_t count) { return Floats(new float[static_cast<size_t>(count)]); }

size_t row_bytes(const AttentionInput& in, bool bfloat16) { return static_cast<size_t>(in.size) * (bfloat16 ? 2 : 4); }

void clear_rows_without_parts(const AttentionInput& in, const Groups& groups, int64_t rows, void* grad_queries,
                              int threads) {
  const size_t bytes = row_bytes(in, in.bfloat16_queries);
  parallel_for(rows, 1024, useful_threads(rows, 0.1 * static_cast<double>(bytes), threads),
               [&](int, int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   if (groups.has_parts(row)) continue;
                   std::memset(static_cast<char*>(grad_queries) + static_cast<size_t>(row) * bytes, 0, bytes);
                 }
               });
}

// The rows of a text's padding, or of all of it.
void clear_states_without_parts(const AttentionInput& in, int64_t text, bool all, char* grad_states) {
  const size_t bytes = row_bytes(in, in.bfloat16_states);
  for (int64_t t = 0; t < in.tokens; ++t) {
    if (all || !in.mask[text * in.tokens + t]) std::memset(grad_states + static_cast<size_t>(t) * bytes, 0, bytes);
  }
}

}  // namespace

void label_attention(const AttentionInput& in, void* out, int set, int threads) {
  const auto& kernels = kernels_for<AttentionKernels>(static_cast<InstructionSet>(set));
  // Blocks of tiles, enough of them that all threads end at about the same time.
  const int64_t wanted = in.batch == 0 ? 1 : (16 * threads + in.batch - 1) / in.batch;
  const int64_t tiles = (in.width + kernels.tile - 1) / kernels.tile;
  const int64_t block = std::max<int64_t>(1, tiles / wanted) * kernels.tile;
  const int64_t blocks = (in.width + block - 1) / block;
  threads = useful_threads(in.batch * blocks, nanoseconds(in, 2.0 * static_cast<double>(block)), threads);
  const std::vector<int64_t> texts = longest_first(lengths_of(in));
  Workspaces workspaces(threads, kernels.workspace(in, false));
  parallel_for(in.batch * blocks, 1, threads, [&](int worker, int64_t task, int64_t) {
    const int64_t begin = task % blocks * block;
    const int64_t text = texts[static_cast<size_t>(task / blocks)];
    kernels.forward(in, text, begin, std::min(in.width, begin + block), out, workspaces.of(worker));
  });
}

void label_attention_backward(const AttentionInput& in, const void* grad, const int64_t* rows, int64_t num_rows,
                              void* grad_states, void* grad_queries, int set, int threads) {
  const auto& kernels = kernels_for<AttentionKernels>(static_cast<InstructionSet>(set));
  const std::vector<int64_t> lengths = lengths_of(in), texts = longest_first(lengths);
  const Groups groups(in, lengths, texts, rows, num_rows, threads);
  const double work = nanoseconds(in, 7.0 * static_cast<double>(in.width) / static_cast<double>(groups.count()));
  threads = static_cast<int>(
      std::min<int64_t>(std::min(in.batch, groups.count()), useful_threads(in.batch * groups.count(), work, threads)));
  threads = std::max(1, threads);
  clear_rows_without_parts(in, groups, num_rows, grad_queries, threads);

  const int64_t text_size = in.tokens * in.size;
  std::vector<Floats> state_sums(static_cast<size_t>(in.batch));  // of texts that are begun and not ended
  const Floats query_sums = in.bfloat16_queries ? floats(groups.sums() * in.size) : nullptr;
  Workspaces workspaces(threads, kernels.workspace(in, true));
  Turns turns(in.batch, groups.count());
  parallel_for(threads, 1, threads, [&](int worker, int64_t, int64_t) {
    turns.take([&](Turns::Turn turn) {
      const int64_t text = texts[turn.text];
      const int64_t begin = groups.begin(text, turn.group), end = groups.begin(text, turn.group + 1);
      char* states =
          static_cast<char*>(grad_states) + static_cast<size_t>(text * in.tokens) * row_bytes(in, in.bfloat16_states);
      if (turn.group == 0) clear_states_without_parts(in, text, groups.begin(text, 0) == groups.end(text), states);
      if (begin == end) return;

      AttentionGradients to;
      to.first = begin == groups.begin(text, 0);
      to.last = end == groups.end(text);
      Floats& sums = state_sums[static_cast<size_t>(text)];
      if (to.first && in.bfloat16_states) sums = floats(text_size);
      to.states = states;
      to.state_sums = in.bfloat16_states ? sums.get() : reinterpret_cast<float*>(states);
      to.queries = grad_queries;
      to.query_sums = in.bfloat16_queries ? query_sums.get() : static_cast<float*>(grad_queries);
      kernels.backward(in, text, groups.candidate(begin), end - begin, groups.end(text) - end, grad, to,
                       workspaces.of(worker));
      if (to.last) sums.reset();
    });
  });
}

}  // namespace xmplug
