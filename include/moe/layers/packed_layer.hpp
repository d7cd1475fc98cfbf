// SPDX-License-Identifier: Apache-2.0
// PackedLayer<S>: the inference form of a MoELayer. Weights are packed once, in any storage type;
// the layer is immutable and may be shared between threads, each with its own scratch.
//
//   hidden (S, F) = act(x gate^T) * (x up^T)    per tile of rows and range of panels
//   rows (S, D)   = hidden down^T               the same
//   y (N, D)      = combine
#pragma once

#include <vector>

#include "../dispatch/combine.hpp"
#include "../experts/packed_expert.hpp"
#include "moe_layer.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Storage S>
class PackedLayer {
 public:
  using W = Wide<S>;

  /// Memory and results of a call. Reused: it allocates where the number of tokens changes.
  struct Scratch {
    typename Router<W>::Table routing;
    DispatchPlan plan;
    Matrix<W> rows;  ///< (S, D_out) outputs of the experts, in expert order

   private:
    friend class PackedLayer;
    struct Job {
      const PackedExpert<S>* expert;
      typename PackedExpert<S>::Rows rows;
    };
    std::vector<Job> jobs;
    // Pointers to rows of x and of hidden: first for each routed row, then, with a shared expert,
    // for each token.
    std::vector<const S*> input_rows, hidden_rows;
    std::vector<W> factors;           // of the output gate, for each of these rows
    Matrix<S> stored_x;               // x as S, where x itself is not
    Matrix<S> hidden, shared_hidden;  // (S, F) and (N, F of the shared expert)
    Matrix<W> shared_out;             // (N, D_out)
    std::vector<Matrix<W>> sums;      // for each worker (tile rows, tile cols)
  };

  /// Packs every expert, in parallel.
  template <Real T>
  explicit PackedLayer(const MoELayer<T>& layer);

  Index d_in() const { return d_in_; }
  Index d_out() const { return d_out_; }
  Index num_experts() const { return static_cast<Index>(experts_.size()); }
  /// Memory of the packed weights.
  std::size_t bytes() const;
  /// The layer again, with its weights as they are stored: rounded if S is narrower than T was.
  MoELayer<W> unpack() const;

  /// y (N, d_out) = layer(x (N, d_in)), bit for bit MoELayer<S>::forward for float and double; bf16
  /// rounds weights, x and hidden rows to bfloat16 once each. y may be x itself. Throws
  /// std::invalid_argument on other shapes or options that do not fit.
  void forward(ConstMatrixRef<W> x, MatrixRef<W> y, Scratch& scratch,
               const CallOptions& call = {}) const;

 private:
  using Job = typename Scratch::Job;

  /// Most rows of a job: their share of a block of k, 4 KiB a row, and their sums stay in the
  /// caches while they meet one panel after the other.
  static constexpr Index job_rows = 256;

  void list_inputs(ConstMatrixRef<W> x, int threads, Scratch& scratch) const;
  void list_jobs(Index num_tokens, Scratch& scratch) const;
  static void add_jobs(const PackedExpert<S>& expert, Index begin, Index rows, S* hidden, W* out,
                       Scratch& scratch);
  /// body(job, part of its panels, sums) for all jobs, in enough parts to keep every thread busy.
  template <class Body>
  static void for_jobs(Scratch& scratch, int threads, Body&& body);

  Router<W> router_;
  std::vector<PackedExpert<S>> experts_;
  std::optional<PackedExpert<S>> shared_;
  LayerOptions options_;
  Index d_in_, d_out_;
};

/// The inference form of a layer with weights stored as S.
template <Storage S, Real T>
PackedLayer<S> pack(const MoELayer<T>& layer) {
  return PackedLayer<S>(layer);
}

template <Storage S>
template <Real T>
PackedLayer<S>::PackedLayer(const MoELayer<T>& layer)
    : router_(layer.router().template cast<W>()),
      options_(layer.options()),
      d_in_(layer.d_in()),
      d_out_(layer.d_out()) {
  std::vector<std::optional<PackedExpert<S>>> packed(layer.experts().size());
  detail::parallel_for(layer.num_experts(), detail::num_threads(0), [&](Index e, int) {
    packed[static_cast<std::size_t>(e)].emplace(layer.experts()[static_cast<std::size_t>(e)]);
  });
  for (auto& expert : packed) {
    experts_.push_back(std::move(*expert));
  }
  if (layer.shared()) {
    shared_.emplace(layer.shared()->expert());
  }
}

template <Storage S>
std::size_t PackedLayer<S>::bytes() const {
  std::size_t sum = shared_ ? shared_->up.bytes() + shared_->down.bytes() : 0;
  for (const PackedExpert<S>& expert : experts_) {
    sum += expert.up.bytes() + expert.down.bytes();
  }
  return sum;
}

template <Storage S>
auto PackedLayer<S>::unpack() const -> MoELayer<W> {
  std::vector<Expert<W>> experts;
  for (const PackedExpert<S>& expert : experts_) {
    experts.push_back(expert.unpack());
  }
  std::optional<DenseFfn<W>> shared;
  if (shared_) {
    shared.emplace(shared_->unpack());
  }
  return MoELayer<W>(router_, std::move(experts), options_, std::move(shared));
}

template <Storage S>
void PackedLayer<S>::forward(ConstMatrixRef<W> x, MatrixRef<W> y, Scratch& scratch,
                             const CallOptions& call) const {
  detail::check_shape(x, x.rows(), d_in(), "PackedLayer: x");
  detail::check_shape(y, x.rows(), d_out(), "PackedLayer: y");
  const int threads = detail::num_threads(call.num_threads);
  detail::in_one_region(threads, [&] {
    router_.route(x, call, scratch.routing);
    scratch.plan.build(scratch.routing, num_experts(), options_.capacity,
                       call.tokens.sequence_length);
    list_inputs(x, threads, scratch);
    list_jobs(x.rows(), scratch);
    for_jobs(scratch, threads, [](const Job& job, detail::Part part, W* sums) {
      job.expert->multiply_up(job.rows, part, sums);
    });
    for_jobs(scratch, threads, [](const Job& job, detail::Part part, W* sums) {
      job.expert->multiply_down(job.rows, part, sums);
    });
    MatrixRef<W> shared_out = scratch.shared_out;
    combine_rows<W>(scratch.rows, scratch.plan,
                    options_.weight_on == WeightOn::output ? &scratch.routing.weight : nullptr,
                    shared_ ? &shared_out : nullptr, y, threads);
  });
}

template <Storage S>
void PackedLayer<S>::list_inputs(ConstMatrixRef<W> x, int threads, Scratch& scratch) const {
  const DispatchPlan& plan = scratch.plan;
  const bool weighted = options_.weight_on == WeightOn::input;
  const Index routed = plan.num_rows(), shared = shared_ ? x.rows() : 0;
  const auto token_of = [&](Index row) {
    return row < routed ? plan.token()[static_cast<std::size_t>(row)] : row - routed;
  };
  scratch.input_rows.resize(static_cast<std::size_t>(routed + shared));
  if constexpr (std::is_same_v<S, W>) {
    if (!weighted) {
      for (Index row = 0; row < routed + shared; ++row) {
        scratch.input_rows[static_cast<std::size_t>(row)] = &x.coeffRef(token_of(row), 0);
      }
      return;
    }
  }
  // Rounded once for each token, or, with the weight on the input, for each row.
  const Index depth = experts_.front().up.depth();
  const Index stored_rows = weighted ? routed + shared : x.rows();
  detail::grow(scratch.stored_x, weighted ? plan.slot().size() + shared : x.rows(), depth);
  detail::for_blocks(stored_rows, threads, [&](Index row) {
    const Index token = weighted ? token_of(row) : row;
    const W weight =
        weighted && row < routed
            ? scratch.routing.weight(token, plan.choice()[static_cast<std::size_t>(row)])
            : W(1);
    const W* from = &x.coeffRef(token, 0);
    S* to = &scratch.stored_x.coeffRef(row, 0);
    for (Index col = 0; col < d_in(); ++col) {
      to[col] = kernels::convert<S>(weight * from[col]);
    }
    std::fill(to + d_in(), to + depth, S(0));
  });
  for (Index row = 0; row < routed + shared; ++row) {
    scratch.input_rows[static_cast<std::size_t>(row)] =
        &scratch.stored_x.coeffRef(weighted ? row : token_of(row), 0);
  }
}

template <Storage S>
void PackedLayer<S>::list_jobs(Index num_tokens, Scratch& scratch) const {
  const Index choices = scratch.plan.slot().size(), routed = scratch.plan.num_rows();
  Index depth = 0;  // of the widest expert
  for (const PackedExpert<S>& expert : experts_) {
    depth = std::max(depth, expert.down.depth());
  }
  detail::grow(scratch.rows, choices, d_out());
  detail::grow(scratch.hidden, choices, depth);
  scratch.jobs.clear();
  scratch.hidden_rows.resize(scratch.input_rows.size());
  scratch.factors.resize(scratch.input_rows.size());
  for (const Tile& tile : scratch.plan.tiles()) {
    add_jobs(experts_[static_cast<std::size_t>(tile.expert)], tile.begin, tile.rows(),
             scratch.hidden.data() + tile.begin * depth, scratch.rows.data() + tile.begin * d_out(),
             scratch);
  }
  if (shared_) {
    const Index shared_depth = shared_->down.depth();
    scratch.shared_out.resize(num_tokens, d_out());
    detail::grow(scratch.shared_hidden, num_tokens, shared_depth);
    add_jobs(*shared_, routed, num_tokens, scratch.shared_hidden.data(), scratch.shared_out.data(),
             scratch);
  }
}

/// Jobs of even size for rows that follow each other: each of them reads the expert's weights.
template <Storage S>
void PackedLayer<S>::add_jobs(const PackedExpert<S>& expert, Index begin, Index rows, S* hidden,
                              W* out, Scratch& scratch) {
  for (Index row = 0; row < rows; ++row) {
    scratch.hidden_rows[static_cast<std::size_t>(begin + row)] = hidden + row * expert.down.depth();
  }
  const Index jobs = (rows + job_rows - 1) / job_rows;
  for (Index job = 0; job < jobs; ++job) {
    const Index row = rows * job / jobs;
    const auto first = static_cast<std::size_t>(begin + row);
    const auto size = static_cast<std::size_t>(rows * (job + 1) / jobs - row);
    scratch.jobs.push_back({&expert,
                            {.input = {scratch.input_rows.data() + first, size},
                             .hidden = {scratch.hidden_rows.data() + first, size},
                             .first_hidden = hidden + row * expert.down.depth(),
                             .factor = scratch.factors.data() + first,
                             .first_out = out + row * expert.down.num_outputs()}});
  }
}

template <Storage S>
template <class Body>
void PackedLayer<S>::for_jobs(Scratch& scratch, int threads, Body&& body) {
  detail::grow(scratch.sums, threads);
  for (Matrix<W>& sums : scratch.sums) {
    sums.resize(job_rows, kernels::PackedMatrix<S>::cols);
  }
  detail::for_parts(static_cast<Index>(scratch.jobs.size()), threads,
                    [&](Index job, detail::Part part, int worker) {
                      body(scratch.jobs[static_cast<std::size_t>(job)], part,
                           scratch.sums[static_cast<std::size_t>(worker)].data());
                    });
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
