#include <cstring>
#include <memory>
#include <vector>

#include "beam_kernels.h"
#include "kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

// Texts are searched together, level by level, so that a node's weights are read once for all that visit it: so many at
// a time, of which as many go through a level together as have so many candidates in it.
constexpr int64_t kTexts = 1024, kCandidates = int64_t{1} << 22;

// Work is cut into pieces of at most so many rows of weights and so many visits, which stay in a cache.
constexpr int64_t kPieceRows = 64, kPieceVisits = 64;

// While one piece is computed, the rows of the one so many further on are fetched: memory is far.
constexpr int64_t kAhead = 4;

struct Piece {
  int64_t row, num_rows;
  int64_t offset;  // of the first row among the node's children
  int64_t visit, num_visits;
};

// An array that is made larger on demand, and loses then what was in it.
template <class T>
class Buffer {
 public:
  T* sized(int64_t size) {
    if (!data_ || size > size_) {
      data_.reset();
      data_.reset(new T[static_cast<size_t>(size)]);
      size_ = size;
    }
    return data_.get();
  }
  T& operator[](int64_t i) const { return data_[static_cast<size_t>(i)]; }
  T* get() const { return data_.get(); }

 private:
  std::unique_ptr<T[]> data_;
  int64_t size_ = 0;
};

struct alignas(64) CacheLine {
  char bytes[64];
};

// The nodes of each text on one level, ascending, and their scores.
struct Beam {
  Buffer<int64_t> nodes, counts;
  Buffer<float> scores;
};

// What a worker needs to choose among one text's candidates.
struct Choice {
  Buffer<float> parents;
  Buffer<int32_t> keys, chosen_keys, places, spare_keys, spare_places;
  Buffer<int64_t> nodes;

  void make_room(int64_t width) {
    parents.sized(width);
    nodes.sized(width);
    for (Buffer<int32_t>* buffer : {&keys, &chosen_keys, &places, &spare_keys, &spare_places})
      buffer->sized(width + kSlack);
  }
};

class Search {
 public:
  Search(const TreeSearch& of, InstructionSet set, int threads)
      : of_(of),
        kernels_(kernels_for<BeamKernels>(set)),
        product_(kernels_.products[of.weights_are_bfloat16][of.hidden_is_bfloat16]),
        threads_(threads),
        hidden_bytes_(of.width * (of.hidden_is_bfloat16 ? 2 : 4)),
        row_bytes_(of.width * (of.weights_are_bfloat16 ? 2 : 4)),
        prepared_lines_((product_.prepared_bytes(of.width) + 63) / 64),
        choices_(static_cast<size_t>(threads)) {
    for (int64_t level = 0; level < of.num_levels - 1; ++level) {
      slots_ = std::max(slots_, std::min(of.beam, of.level_offsets[level + 1] - of.level_offsets[level]));
    }
    together_ = std::min(of.texts, std::max<int64_t>(1, std::min(kTexts, kCandidates / slots_)));
    prepared_.sized(together_ * prepared_lines_);
    begin_.sized(together_ + 1);
    for (Beam* beam : {&now_, &next_}) {
      beam->nodes.sized(together_ * slots_);
      beam->scores.sized(together_ * slots_);
      beam->counts.sized(together_);
    }
  }

  void run() {
    for (first_ = 0; first_ < of_.texts; first_ += together_) {
      const int64_t texts = std::min(together_, of_.texts - first_);
      start(texts);
      for (int64_t level = 0; level < of_.num_levels - 1; ++level) {
        for (int64_t begin = 0, end; begin < texts; begin = end) {
          end = place_candidates(begin, texts);
          visit(begin, end);
          multiply(begin_[end]);
          choose(begin, end, level == of_.num_levels - 2);
        }
        std::swap(now_, next_);
      }
    }
  }

 private:
  int64_t num_children(int64_t node) const { return of_.first_child[node + 1] - of_.first_child[node]; }

  const char* prepared(int64_t text) const { return prepared_[text * prepared_lines_].bytes; }

  // All texts at the root, which is certain.
  void start(int64_t texts) {
    for (int64_t text = 0; text < texts; ++text) {
      product_.prepare(of_.hidden + (first_ + text) * hidden_bytes_, of_.width,
                       prepared_[text * prepared_lines_].bytes);
      now_.nodes[text * slots_] = 0;
      now_.scores[text * slots_] = 1.0f;
      now_.counts[text] = 1;
    }
  }

  // Where each text's candidates begin, from text `begin` on: as many texts as go together, at least one. Returns the
  // first of the others.
  int64_t place_candidates(int64_t begin, int64_t texts) {
    begin_[begin] = num_visits_ = widest_ = 0;
    for (int64_t text = begin; text < texts; ++text) {
      int64_t width = 0;
      for (int64_t i = 0; i < now_.counts[text]; ++i) width += num_children(now_.nodes[text * slots_ + i]);
      if (text > begin && begin_[text] + width > kCandidates) return text;
      begin_[text + 1] = begin_[text] + width;
      widest_ = std::max(widest_, width);
      num_visits_ += now_.counts[text];
    }
    return texts;
  }

  void visit(int64_t begin, int64_t end) {
    float* logits = logits_.sized(begin_[end]);
    Visit* visit = visits_.sized(num_visits_);
    for (int64_t text = begin; text < end; ++text) {
      for (int64_t i = 0; i < now_.counts[text]; ++i) {
        const int64_t node = now_.nodes[text * slots_ + i];
        *visit++ = {node, prepared(text), logits};
        logits += num_children(node);
      }
    }
    if (end - begin > 1) sort_visits();  // those of one text are in order
    cut();
  }

  // By node. Digit by digit, which takes no time in the size of the level.
  void sort_visits() {
    constexpr int kBits = 11, kDigits = 1 << kBits;
    int64_t low = visits_[0].node, high = low;
    for (int64_t i = 1; i < num_visits_; ++i) {
      low = std::min(low, visits_[i].node);
      high = std::max(high, visits_[i].node);
    }
    for (int shift = 0; (high - low) >> shift; shift += kBits) {
      const auto digit = [&](const Visit& visit) { return ((visit.node - low) >> shift) & (kDigits - 1); };
      const Visit* from = visits_.get();
      Visit* to = sorted_.sized(num_visits_);
      int64_t places[kDigits + 1] = {};
      for (int64_t i = 0; i < num_visits_; ++i) ++places[digit(from[i]) + 1];
      for (int i = 1; i <= kDigits; ++i) places[i] += places[i - 1];
      for (int64_t i = 0; i < num_visits_; ++i) to[places[digit(from[i])]++] = from[i];
      std::swap(visits_, sorted_);
    }
  }

  void cut() {
    pieces_.clear();
    for (int64_t begin = 0, end; begin < num_visits_; begin = end) {
      const int64_t node = visits_[begin].node, first = of_.first_child[node], rows = num_children(node);
      for (end = begin + 1; end < num_visits_ && visits_[end].node == node;) ++end;
      for (int64_t row = 0; row < rows; row += kPieceRows) {
        for (int64_t visit = begin; visit < end; visit += kPieceVisits) {
          pieces_.push_back(
              {first + row, std::min(kPieceRows, rows - row), row, visit, std::min(kPieceVisits, end - visit)});
        }
      }
    }
  }

  void multiply(int64_t num_candidates) {
    const auto pieces = static_cast<int64_t>(pieces_.size());
    const double nanoseconds = 0.1 * static_cast<double>(num_candidates) * static_cast<double>(of_.width);
    const int threads = useful_threads(pieces, nanoseconds / static_cast<double>(pieces), threads_);
    const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(32, pieces / (8 * threads)));
    parallel_for(pieces, chunk, threads, [&](int, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Piece& piece = pieces_[static_cast<size_t>(i)];
        const Piece& ahead = pieces_[static_cast<size_t>(std::min(i + kAhead, pieces - 1))];
        product_.logits(of_.weights + piece.row * row_bytes_, piece.num_rows, of_.width, &visits_[piece.visit],
                        piece.num_visits, piece.offset, of_.weights + ahead.row * row_bytes_);
      }
    });
  }

  void choose(int64_t begin, int64_t end, bool last) {
    const int64_t texts = end - begin;
    const double nanoseconds = 1.5 * static_cast<double>(begin_[end]);
    const int threads = useful_threads(texts, nanoseconds / static_cast<double>(texts), threads_);
    for (int worker = 0; worker < threads; ++worker) choices_[static_cast<size_t>(worker)].make_room(widest_);
    parallel_for(texts, 4, threads, [&](int worker, int64_t from, int64_t to) {
      Choice& choice = choices_[static_cast<size_t>(worker)];
      for (int64_t text = begin + from; text < begin + to; ++text) {
        const int64_t size = select(text, choice, last ? of_.k : of_.beam);
        if (last) {
          answer(first_ + text, choice, size);
        } else {
          keep(text, choice, size);
        }
      }
    });
  }

  // The best of a text's candidates, at most `most`, as ascending places with their nodes. Places ascend as nodes do,
  // so that of equal ones the first are taken.
  int64_t select(int64_t text, Choice& choice, int64_t most) {
    const int64_t* nodes = &now_.nodes[text * slots_];
    float* parent = choice.parents.get();
    for (int64_t i = 0; i < now_.counts[text]; ++i) {
      parent = std::fill_n(parent, num_children(nodes[i]), now_.scores[text * slots_ + i]);
    }
    const int64_t width = parent - choice.parents.get();
    const Buffer<int32_t>&keys = choice.chosen_keys, &places = choice.places;
    kernels_.score(&logits_[begin_[text]], choice.parents.get(), nullptr, width, choice.keys.get());
    int64_t size = kernels_.select(choice.keys.get(), width, most, most, places.get(), keys.get());
    if (size > most) size = drop_last_equals(keys, places, size, most);
    for (int64_t i = 0, begin = 0; i < size; ++i) {
      for (; places[i] >= begin + num_children(*nodes); ++nodes) begin += num_children(*nodes);
      choice.nodes[i] = of_.first_child[*nodes] + places[i] - begin;
    }
    return size;
  }

  // Where too many candidates share the least key, only the first of these stay.
  static int64_t drop_last_equals(const Buffer<int32_t>& keys, const Buffer<int32_t>& places, int64_t size,
                                  int64_t most) {
    int32_t least = keys[0];
    for (int64_t i = 1; i < size; ++i) least = std::min(least, keys[i]);
    int64_t equals = most;
    for (int64_t i = 0; i < size; ++i) equals -= keys[i] > least;
    int64_t kept = 0;
    for (int64_t i = 0; i < size; ++i) {
      if (keys[i] > least || equals-- > 0) {
        keys[kept] = keys[i];
        places[kept++] = places[i];
      }
    }
    return kept;
  }

  void keep(int64_t text, const Choice& choice, int64_t size) {
    next_.counts[text] = size;
    for (int64_t i = 0; i < size; ++i) {
      next_.nodes[text * slots_ + i] = choice.nodes[i];
      next_.scores[text * slots_ + i] = score_of(choice.chosen_keys[i]);
    }
  }

  void answer(int64_t text, const Choice& choice, int64_t size) {
    for (int64_t i = 0; i < size; ++i) choice.places[i] = static_cast<int32_t>(i);  // among the nodes
    order_chosen(kernels_, {choice.chosen_keys.get(), choice.places.get(), choice.spare_keys.get(),
                            choice.spare_places.get(), size});
    for (int64_t i = 0; i < of_.k; ++i) {
      const int64_t out = text * of_.k + i, place = i < size ? choice.places[i] : -1;
      of_.scores[out] = place < 0 ? 0.0f : score_of(choice.chosen_keys[i]);
      of_.leaves[out] = place < 0 ? -1 : choice.nodes[place];
      of_.best_labels[out] = place < 0 ? -1 : of_.labels[of_.leaves[out] - of_.level_offsets[of_.num_levels - 1]];
    }
  }

  const TreeSearch of_;
  const BeamKernels& kernels_;
  const Product product_;
  const int threads_;
  const int64_t hidden_bytes_, row_bytes_, prepared_lines_;
  int64_t slots_ = 1, together_ = 0, first_ = 0, num_visits_ = 0, widest_ = 0;
  Buffer<CacheLine> prepared_;
  Buffer<int64_t> begin_;  // of each text's candidates among the logits
  Buffer<float> logits_;
  Buffer<Visit> visits_, sorted_;
  std::vector<Piece> pieces_;
  Beam now_, next_;
  std::vector<Choice> choices_;
};

}  // namespace

void tree_beam_search(const TreeSearch& search, InstructionSet set, int threads) { Search(search, set, threads).run(); }

}  // namespace xmplug
