// SPDX-License-Identifier: Apache-2.0
// A golden file (data/README.md) -> Recorded<T>: its layer in the scalar T, and what is asked of
// it. What the file says comes out is not looked at here.
#pragma once

#include <moe/io/family_router.hpp>
#include <moe/moe.hpp>

#include <set>
#include <string>
#include <vector>

#include "../support/family_experts.hpp"
#include "golden_facts.hpp"

namespace moe::golden {

template <Real T, class RouterT>
class Recorded {
 public:
  using Layer = MoELayer<T, RouterT>;

  Recorded(const io::SafeTensors& file, const Facts& facts)
      : file_(file), facts_(facts), layer_(make_layer(file, facts)) {
    layer_.for_each_parameter([&](const std::string& name, auto& parameter) {
      for (const io::PartPlace& part : facts_.parts(name, parameter)) {
        read(part, parameter);
      }
    });
    x_ = read<T>("input.x", facts_.tokens(), width());
    expert_x_ = apart() ? read<T>("input.expert_x", facts_.tokens(), width()) : x_;
    call_.num_threads = 1;  // some 20 tokens
    call_.tokens.sequence_length = facts_.sequence();
    if (facts_.config().router.selection.vocabulary > 0) {
      used_.insert("weights.gate.tid2eid");  // read by facts_.table()
      ids_ = read<std::int32_t>("input.token_ids", facts_.tokens() / facts_.sequence(),
                                facts_.sequence());
      call_.tokens.ids = {ids_.data(), static_cast<std::size_t>(ids_.size())};
    }
    if (facts_.config().second_experts > 0) {  // 0: text, 1 and 2: images
      const auto types = read<std::uint8_t>("input.token_type_ids",
                                            facts_.tokens() / facts_.sequence(), facts_.sequence());
      second_.assign(types.data(), types.data() + types.size());
      mask_ = io::mask_of_sets(facts_.config(), second_);
      call_.expert_mask = &mask_;
    }
  }
  Recorded(const Recorded&) = delete;  // the call refers to members
  Recorded& operator=(const Recorded&) = delete;

  const Layer& layer() const { return layer_; }
  const CallOptions& call() const { return call_; }
  LayerInput<T> input() const { return {expert_x_, apart() ? x_ : expert_x_}; }
  /// (N, D) as the experts see it.
  const Matrix<T>& expert_x() const { return expert_x_; }

  /// A tensor of the file, which counts as used.
  template <class S>
  Matrix<S> read(const std::string& name, Index rows, Index cols) {
    used_.insert(name);
    return io::read_matrix<S>(file_, name, rows, cols);
  }

 protected:
  template <class S>
  void read(const io::PartPlace& part, Matrix<S>& to) {
    used_.insert(part.place.tensor);
    io::read_part<S>({file_.at(part.place.tensor), file_.file()}, part, to);
  }

  Index width() const { return facts_.config().d_model; }
  /// Whether the experts see other tokens than the router.
  bool apart() const { return file_.contains("input.expert_x"); }

  const io::SafeTensors& file_;
  const Facts& facts_;
  Layer layer_;
  Matrix<T> x_, expert_x_;  // the router sees x_
  Matrix<std::int32_t> ids_;
  std::vector<std::uint8_t> second_;  // whose experts are of the second set; empty without
  ExpertMask mask_;
  CallOptions call_;
  std::set<std::string> used_;

 private:
  static Layer make_layer(const io::SafeTensors& file, const Facts& facts) {
    const io::LayerConfig& config = facts.config();
    return Layer(io::FamilyRouter<RouterT>::make(config, facts.table(file)),
                 FfnExperts<T>(io::testing::experts_of<T>(config, 0)), config.options(),
                 make_shared_expert<T>(config, 0), make_extras<T>(config, 0));
  }
};

/// f(recorded) with a file's layer, whatever its router is. Throws FormatError or
/// std::invalid_argument if the file does not hold a golden case.
template <Real T, class F>
auto with_recorded(const io::SafeTensors& file, F&& f) {
  const Facts facts(file);
  return io::visit_router_type<T>(facts.config().router_type,
                                  [&]<class RouterT>(std::type_identity<RouterT>) {
                                    Recorded<T, RouterT> recorded(file, facts);
                                    return f(recorded);
                                  });
}

}  // namespace moe::golden
