// SPDX-License-Identifier: Apache-2.0
// A decoder in double, a token and a head at a time, each text from its beginning without a cache:
// what examples/decoder has to compute, for whatever of its families.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <set>

#include "io/model_folder.hpp"

namespace moe::testing {

using Vector = Eigen::VectorXd;

/// The facts of a model, and its tensors by the names in its family's code.
struct ReferenceDecoder {
  struct Yarn {
    double factor, context, fast = 32, slow = 1;
    bool whole;
  };

  io::testing::NewTensors tensors = {};
  Index vocabulary = 29, d_model = 24, layers = 2, heads = 4, kv_heads = 2, head_dim = 6;
  double theta = 10000, epsilon = 1e-5;
  std::optional<Yarn> yarn = {};
  bool qkv_bias = false, out_bias = false, sinks = false, tied = false;
  enum { none, of_head, of_all } qk_norm = none;
  double clip = 0;
  std::vector<Index> window = {0, 0};  // of each layer; 0: none
  std::set<Index> dense = {};          // layers
  Index dense_width = 20, d_ff = 14, experts = 5, top_k = 2, shared_width = 0;
  bool renormalise = true, gpt_oss = false, mixtral = false;

  /// Of one text.
  struct Run {
    std::vector<Matrix<double>> states;  // (S, D): the embedding, behind each layer, the last norm
    Matrix<double> logits;
    std::vector<Matrix<ExpertId>> chosen;  // (S, K) of each layer; empty of a dense one
    double decisive = 1e9;                 // the least distance of neighbours among the K + 1 best
  };
  Run run(const std::vector<std::int32_t>& ids) const;

 private:
  Vector vector(const std::string& name) const;
  Vector vector(const std::string& name, Index begin, Index count) const {
    return vector(name).segment(begin, count);
  }
  Matrix<double> matrix(const std::string& name, Index rows, Index cols) const;
  Vector project(const std::string& name, Index out, const Vector& x, bool bias) const;
  Vector normed(const std::string& name, const Vector& x, Index width) const;
  Vector turned(const Vector& x, Index position) const;
  Matrix<double> attention(const std::string& layer, Index number, const Matrix<double>& x) const;
  Vector swiglu(const std::string& prefix, const Vector& x, Index width) const;
  Vector expert(const std::string& block, Index e, const Vector& x) const;
  Vector block(const std::string& layer, const Vector& x, Index row, Run& run,
               Matrix<ExpertId>& chosen) const;
};

inline Vector ReferenceDecoder::vector(const std::string& name) const {
  const io::testing::NewTensor& tensor = tensors.at(name);
  std::vector<float> values(tensor.data.size() / sizeof(float));
  std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return Eigen::Map<const Eigen::VectorXf>(values.data(), static_cast<Index>(values.size()))
      .cast<double>();
}

inline Matrix<double> ReferenceDecoder::matrix(const std::string& name, Index rows,
                                               Index cols) const {
  const Vector all = vector(name);
  return Eigen::Map<const Matrix<double>>(all.data(), rows, cols);
}

inline Vector ReferenceDecoder::project(const std::string& name, Index out, const Vector& x,
                                        bool bias) const {
  Vector y = matrix(name + ".weight", out, x.size()) * x;
  return bias ? Vector(y + vector(name + ".bias")) : y;
}

inline Vector ReferenceDecoder::normed(const std::string& name, const Vector& x,
                                       Index width) const {
  Vector y = x;
  for (Index i = 0; i < x.size(); ++i) {
    const Index part = i / width * width;
    double mean = 0;
    for (Index j = part; j < part + width; ++j) {
      mean += x(j) * x(j) / static_cast<double>(width);
    }
    y(i) = vector(name + ".weight")(i - part) * x(i) / std::sqrt(mean + epsilon);
  }
  return y;
}

/// YaRN by the formula in the code that came with gpt-oss: a mask between two frequencies.
inline Vector ReferenceDecoder::turned(const Vector& x, Index position) const {
  const Index half = head_dim / 2;
  Vector y = x;
  double concentration = 1;
  for (Index i = 0; i < half; ++i) {
    double frequency = 1 / std::pow(theta, static_cast<double>(i) / static_cast<double>(half));
    if (yarn) {
      concentration = 0.1 * std::log(yarn->factor) + 1;
      const auto limit = [&](double turns) {
        return static_cast<double>(half) *
               std::log(yarn->context / (turns * 2 * std::numbers::pi)) / std::log(theta);
      };
      const double low = yarn->whole ? std::floor(limit(yarn->fast)) : limit(yarn->fast);
      const double high = yarn->whole ? std::ceil(limit(yarn->slow)) : limit(yarn->slow);
      const double ramp = (static_cast<double>(i) - low) / (high - low);
      const double mask = 1 - std::min(std::max(ramp, 0.0), 1.0);
      frequency = frequency / yarn->factor * (1 - mask) + frequency * mask;
    }
    const double angle = static_cast<double>(position) * frequency;
    for (Index head = 0; head < x.size(); head += head_dim) {
      const double first = x(head + i), second = x(head + half + i);
      y(head + i) = concentration * (first * std::cos(angle) - second * std::sin(angle));
      y(head + half + i) = concentration * (second * std::cos(angle) + first * std::sin(angle));
    }
  }
  return y;
}

inline Matrix<double> ReferenceDecoder::attention(const std::string& layer, Index number,
                                                  const Matrix<double>& x) const {
  const std::string self = layer + "self_attn.";
  const Index q_width = heads * head_dim, kv_width = kv_heads * head_dim;
  std::vector<Vector> q, k, v;
  for (Index t = 0; t < x.rows(); ++t) {
    q.push_back(project(self + "q_proj", q_width, x.row(t), qkv_bias));
    k.push_back(project(self + "k_proj", kv_width, x.row(t), qkv_bias));
    v.push_back(project(self + "v_proj", kv_width, x.row(t), qkv_bias));
    if (qk_norm != none) {
      q.back() = normed(self + "q_norm", q.back(), qk_norm == of_head ? head_dim : q_width);
      k.back() = normed(self + "k_norm", k.back(), qk_norm == of_head ? head_dim : kv_width);
    }
    for (Vector* each : {&q.back(), &k.back(), &v.back()}) {
      for (double& value : *each) {
        value = clip > 0 ? std::min(std::max(value, -clip), clip) : value;
      }
    }
    q.back() = turned(q.back(), t);
    k.back() = turned(k.back(), t);
  }
  Matrix<double> y(x.rows(), d_model);
  for (Index t = 0; t < x.rows(); ++t) {
    Vector all = Vector::Zero(q_width);
    for (Index head = 0; head < heads; ++head) {
      const Index begin = head * head_dim, kv = head / (heads / kv_heads) * head_dim;
      const auto slot = static_cast<std::size_t>(t);
      double sum = sinks ? std::exp(vector(self + "sinks")(head)) : 0;
      Vector mean = Vector::Zero(head_dim);
      for (std::size_t s = 0; s <= slot; ++s) {
        const Index w = window[static_cast<std::size_t>(number)];
        if (w > 0 && static_cast<Index>(slot - s) >= w) {
          continue;
        }
        const double score = q[slot].segment(begin, head_dim).dot(k[s].segment(kv, head_dim)) /
                             std::sqrt(static_cast<double>(head_dim));
        sum += std::exp(score);
        mean += std::exp(score) * v[s].segment(kv, head_dim);
      }
      all.segment(begin, head_dim) = mean / sum;
    }
    y.row(t) = project(self + "o_proj", d_model, all, out_bias);
  }
  return y;
}

inline Vector ReferenceDecoder::swiglu(const std::string& prefix, const Vector& x,
                                       Index width) const {
  const Vector gate = project(prefix + (mixtral ? "w1" : "gate_proj"), width, x, false);
  const Vector up = project(prefix + (mixtral ? "w3" : "up_proj"), width, x, false);
  Vector hidden(width);
  for (Index i = 0; i < width; ++i) {
    hidden(i) = gate(i) / (1 + std::exp(-gate(i))) * up(i);
  }
  return project(prefix + (mixtral ? "w2" : "down_proj"), d_model, hidden, false);
}

inline Vector ReferenceDecoder::expert(const std::string& block, Index e, const Vector& x) const {
  const std::string prefix = block + "experts.";
  if (!gpt_oss) {
    return swiglu(prefix + std::to_string(e) + ".", x, d_ff);
  }
  // Columns of gate and up take turns.
  const auto slice = [&](const char* name, Index rows, Index cols) {
    const Vector all = vector(prefix + name, e * rows * cols, rows * cols);
    return Matrix<double>(Eigen::Map<const Matrix<double>>(all.data(), rows, cols));
  };
  const Vector both = slice("gate_up_proj", d_model, 2 * d_ff).transpose() * x +
                      slice("gate_up_proj_bias", 1, 2 * d_ff).transpose();
  Vector hidden(d_ff);
  for (Index i = 0; i < d_ff; ++i) {
    const double gate = std::min(both(2 * i), 7.0);
    const double up = std::min(std::max(both(2 * i + 1), -7.0), 7.0);
    hidden(i) = (up + 1) * gate / (1 + std::exp(-1.702 * gate));
  }
  return slice("down_proj", d_ff, d_model).transpose() * hidden +
         slice("down_proj_bias", 1, d_model).transpose();
}

inline Vector ReferenceDecoder::block(const std::string& layer, const Vector& x, Index row,
                                      Run& run, Matrix<ExpertId>& chosen) const {
  const std::string block = layer + (mixtral ? "block_sparse_moe." : "mlp.");
  const Vector z = project(block + (gpt_oss ? "router" : "gate"), experts, x, gpt_oss);
  std::vector<Index> order(static_cast<std::size_t>(experts));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](Index a, Index b) { return z(a) > z(b); });
  double all = 0, of_chosen = 0;
  for (Index rank = 0; rank < experts; ++rank) {
    const double score = std::exp(z(order[static_cast<std::size_t>(rank)]));
    all += score;
    if (rank < top_k) {
      of_chosen += score;
      run.decisive = std::min(run.decisive, z(order[static_cast<std::size_t>(rank)]) -
                                                z(order[static_cast<std::size_t>(rank) + 1]));
    }
  }
  Vector y = Vector::Zero(d_model);
  for (Index rank = 0; rank < top_k; ++rank) {
    const Index e = order[static_cast<std::size_t>(rank)];
    chosen(row, rank) = static_cast<ExpertId>(e);
    y += std::exp(z(e)) / (renormalise ? of_chosen : all) * expert(block, e, x);
  }
  if (shared_width > 0) {
    const double gate = vector(block + "shared_expert_gate.weight").dot(x);
    y += swiglu(block + "shared_expert.", x, shared_width) / (1 + std::exp(-gate));
  }
  return y;
}

inline ReferenceDecoder::Run ReferenceDecoder::run(const std::vector<std::int32_t>& ids) const {
  const Matrix<double> embedding = matrix("model.embed_tokens.weight", vocabulary, d_model);
  const auto length = static_cast<Index>(ids.size());
  Run run;
  Matrix<double> x(length, d_model);
  for (Index t = 0; t < length; ++t) {
    x.row(t) = embedding.row(ids[static_cast<std::size_t>(t)]);
  }
  run.states.push_back(x);
  const auto norm_of = [&](const std::string& name) {
    Matrix<double> y = x;
    for (Index t = 0; t < length; ++t) {
      y.row(t) = normed(name, x.row(t), d_model);
    }
    return y;
  };
  for (Index l = 0; l < layers; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    x += attention(layer, l, norm_of(layer + "input_layernorm"));
    const Matrix<double> inner = norm_of(layer + "post_attention_layernorm");
    const bool is_dense = dense.contains(l);
    run.chosen.emplace_back(is_dense ? 0 : length, is_dense ? 0 : top_k);
    for (Index t = 0; t < length; ++t) {
      x.row(t) += is_dense ? swiglu(layer + "mlp.", inner.row(t), dense_width)
                           : block(layer, inner.row(t), t, run, run.chosen.back());
    }
    run.states.push_back(x);
  }
  run.states.push_back(norm_of("model.norm"));
  run.logits = run.states.back() *
               (tied ? embedding : matrix("lm_head.weight", vocabulary, d_model)).transpose();
  return run;
}

}  // namespace moe::testing
