// SPDX-License-Identifier: Apache-2.0
// The stages of Expert's backward, from the gradients of its outputs to those of its hidden rows,
// its inputs and its parameters.
#pragma once

#include "expert.hpp"

namespace moe::inline MOE_INSTRUCTION_SET {

template <Real T>
void Expert<T>::backward_gate(ConstMatrixRef<T> dy, Tape& tape, Index first) const {
  for (Index row = 0; config_.output_gate && row < dy.rows(); ++row) {
    const W factor = tape.factor(first + row, 0);
    const W dfactor =
        kernels::dot(&dy.coeffRef(row, 0), &tape.ungated.coeffRef(first + row, 0), d_out());
    tape.dfactor(first + row, 0) = dfactor * (factor * (W(1) - factor));
    auto dungated = tape.dungated.block(first + row, 0, 1, d_out());
    dungated = dy.row(row);
    kernels::scale_row(factor, d_out(), dungated.data());
  }
}

template <Real T>
void Expert<T>::backward_hidden(ConstMatrixRef<T> dy, Tape& tape, Index first, detail::Part part,
                                int worker) const {
  const Index rows = dy.rows(), gate_rows = config_.gated ? rows : 0;
  const Index first_gate = config_.gated ? first : 0;
  const ConstMatrixRef<T> dungated = ungated(dy, tape, first);
  for_panels(d_ff(), part, [&](Index begin, Index columns) {
    auto dup = tape.dup.block(first, begin, rows, columns);
    kernels::gemm<T>(kernels::view(dungated),
                     kernels::view(params_.down.middleCols(begin, columns)), dup,
                     kernels::Update::assign, packing_of(tape, worker));
    if (tape.hidden_weight.empty()) {
      activate_rows_backward<T>(config_, tape.gate.block(first_gate, begin, gate_rows, columns),
                                tape.up.block(first, begin, rows, columns),
                                tape.dgate.block(first_gate, begin, gate_rows, columns), dup);
    }
  });
}

template <Real T>
void Expert<T>::backward_weight(ConstMatrixRef<T> dy, Tape& tape, Index first) const {
  const W* weight = weights_from(tape, first);
  const Index rows = dy.rows(), gate_rows = config_.gated ? rows : 0;
  const Index first_gate = config_.gated ? first : 0;
  const ConstMatrixRef<T> dungated = ungated(dy, tape, first);
  for (Index row = 0; row < rows; ++row) {
    T* dhidden = &tape.dup.coeffRef(first + row, 0);
    W dweight = kernels::dot(dhidden, &tape.hidden.coeffRef(first + row, 0), d_ff());
    if (config_.bias) {
      dweight += kernels::dot(&dungated.coeffRef(row, 0), params_.down_bias.data(), d_out());
    }
    tape.dweight[static_cast<std::size_t>(first + row)] = dweight;
    kernels::scale_row(weight[row], d_ff(), dhidden);
  }
  activate_rows_backward<T>(config_, tape.gate.block(first_gate, 0, gate_rows, d_ff()),
                            tape.up.block(first, 0, rows, d_ff()),
                            tape.dgate.block(first_gate, 0, gate_rows, d_ff()),
                            tape.dup.block(first, 0, rows, d_ff()));
}

template <Real T>
void Expert<T>::backward_input(Tape& tape, Index first, MatrixRef<T> dx, detail::Part part,
                               int worker) const {
  const Index begin = part.begin(d_in(), panel), columns = part.end(d_in(), panel) - begin;
  sums_of(tape, worker)
      .write(dx.middleCols(begin, columns), [&](MatrixRef<W> sums, Index row, Index col) {
        const auto multiply_back = [&](const Matrix<T>& dz, const Matrix<T>& weight,
                                       kernels::Update update) {
          kernels::gemm<T, W>(kernels::view(dz.block(first + row, 0, sums.rows(), d_ff())),
                              kernels::view(weight.middleCols(begin + col, sums.cols())), sums,
                              update, packing_of(tape, worker));
        };
        multiply_back(tape.dup, params_.up, kernels::Update::assign);
        if (config_.gated) {
          multiply_back(tape.dgate, params_.gate, kernels::Update::add);
        }
        for (Index r = 0; config_.output_gate && r < sums.rows(); ++r) {
          kernels::add_rows<T>(params_.output_gate.middleCols(begin + col, sums.cols()),
                               &tape.dfactor.coeffRef(first + row + r, 0), &sums.coeffRef(r, 0));
        }
      });
}

template <Real T>
void Expert<T>::backward_params(const TapedRows& rows, Tape& tape, Grads& grads, detail::Part part,
                                int worker) const {
  const Index first = rows.first, count = rows.x.rows();
  Packing& packing = packing_of(tape, worker);
  detail::project_backward<T>(weighted(tape).block(first, 0, count, d_ff()),
                              ungated(rows.dy, tape, first), part,
                              {grads.down, grads.down_bias, weights_from(tape, first)}, packing);
  detail::project_backward<T>(rows.x, tape.dup.block(first, 0, count, d_ff()), part,
                              {grads.up, grads.up_bias}, packing);
  if (config_.gated) {
    detail::project_backward<T>(rows.x, tape.dgate.block(first, 0, count, d_ff()), part,
                                {grads.gate, grads.gate_bias}, packing);
  }
  if (config_.output_gate && part.number == 0 && count > 0) {
    kernels::add_rows<T>(rows.x, &tape.dfactor.coeffRef(first, 0), grads.output_gate.data());
  }
}

}  // namespace moe::inline MOE_INSTRUCTION_SET
