// SPDX-License-Identifier: Apache-2.0
// The report as files for other programs: report.json, and one CSV for each table.
#pragma once

#include <cmath>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "results.hpp"

namespace moe::report {

inline Json to_json(const Machine& machine) {
  return {{"threads", machine.threads},
          {"fma_roof_gflops", 1e-9 * machine.fma_roof},
          {"read_gbs", 1e-9 * machine.read_roof},
          {"cpu", machine.cpu},
          {"compiler", machine.compiler},
          {"flags", machine.flags},
          {"simd", machine.simd}};
}

inline Json to_json(const ModelRow& r) {
  return {{"name", r.model.name},
          {"family", r.model.family},
          {"total_params", r.cost.total},
          {"active_params", r.cost.active},
          {"published_total", r.model.published.total},
          {"published_active", r.model.published.active},
          {"flops_per_token", r.cost.flops_per_token},
          {"dense_equal_active_params", r.equal_active.total},
          {"dense_equal_total_flops", r.equal_total.flops_per_token},
          {"active_params_with_input_embedding", r.cost.active_with_embedding},
          {"total_deviation", r.total_deviation()},
          {"active_deviation", r.active_deviation()},
          {"source", r.model.published.source},
          {"note", r.model.note}};
}

inline Json to_json(const Measured& m, const Report& report) {
  const Machine& machine = report.machine;
  Json json{{"layer", m.layer},
            {"d_model", report.grid.d_model},
            {"experts", m.experts},
            {"top_k", m.top_k},
            {"d_ff", m.d_ff},
            {"tokens", m.tokens},
            {"seconds", m.seconds},
            {"best_seconds", m.best_seconds},
            {"seconds_per_token", m.seconds / static_cast<double>(m.tokens)},
            {"repetitions", m.repetitions},
            {"gflops", m.gflops()},
            {"roof_share", m.roof_share(machine)},
            {"fma_share", m.fma_share(machine)},
            {"read_share", m.read_share(machine)},
            {"flop_ratio", m.flop_ratio},
            {"speedup", m.speedup},
            {"total_params", m.total_params},
            {"active_params", m.active_params},
            {"matmul_flops", m.matmul_flops},
            {"bytes", m.bytes},
            {"distinct_experts", m.distinct_experts}};
  if (!m.dense()) {
    json.update({{"route_seconds", m.stages.route},
                 {"plan_seconds", m.stages.plan},
                 {"experts_seconds", m.stages.experts},
                 {"combine_seconds", m.stages.combine}});
  }
  return json;
}

inline Json to_json(const Pair& p) {
  return {{"form", p.form},
          {"tokens", p.tokens},
          {"moe_seconds", p.moe_seconds},
          {"dense_seconds", p.dense_seconds},
          {"moe_gflops", p.moe_gflops},
          {"dense_gflops", p.dense_gflops},
          {"ratio", p.ratio},
          {"bytes", p.bytes},
          {"bits_per_weight", p.bits},
          {"error", p.error}};
}

inline Json to_json(const Yardstick& y) {
  Json json{{"shape", shape_name(y.config)}, {"d_model", y.config.d_model},
            {"d_ff", y.config.d_ff},         {"experts", y.config.num_experts},
            {"top_k", y.config.top_k},       {"tokens", y.reference().tokens},
            {"ratio", y.reference().ratio}};
  for (const Pair& pair : y.pairs) {
    json["forms"].push_back(to_json(pair));
  }
  return json;
}

/// A number that is an integer without the point of a double: 12, not 12.0.
inline Json integer_of(double value) {
  const bool whole = std::abs(value) < 0x1p53 && value == std::floor(value);
  return whole ? Json(static_cast<Index>(value)) : Json(value);
}

inline Json to_json(const Counted& c) {
  return {{"case", c.name},
          {"counted_flops", c.counted_flops},
          {"predicted_flops", integer_of(c.predicted_flops)}};
}

inline Json to_json(const Load& load) {
  return {{"routing", load.routing},
          {"capacity", load.capacity},
          {"kept", load.kept},
          {"dropped", load.dropped},
          {"dropped_share", load.dropped_share},
          {"variation", load.variation}};
}

inline Json to_json(const Report& report) {
  Json json;
  const auto add = [&](const char* table, const auto& rows) {
    for (const auto& row : rows) {
      json[table].push_back(to_json(row));
    }
  };
  json["machine"] = to_json(report.machine);
  json["grid"] = {{"d_model", report.grid.d_model}, {"active_d_ff", report.grid.active_d_ff}};
  add("models", report.models);
  for (const Measured& m : report.measured) {
    json["measured"].push_back(to_json(m, report));
  }
  json["reference"] = to_json(report.yardstick);
  add("counted", report.counted);
  add("load", report.loads);
  json["peers"] = report.peers;
  json["seconds"] = report.seconds;
  return json;
}

inline void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  if (!file.flush()) {
    throw std::runtime_error("moe_report: cannot write " + path.string());
  }
}

/// The rows of a JSON table; the columns are the keys of the widest row, in its order. A row with
/// lists becomes a line for each of their elements.
inline std::string to_csv(const Json& rows) {
  const Json& head = *std::max_element(
      rows.begin(), rows.end(), [](const Json& a, const Json& b) { return a.size() < b.size(); });
  std::string csv;
  const auto line = [&](auto&& cell) {
    for (const auto& [column, _] : head.items()) {
      csv += (column == head.begin().key() ? "" : ",") + cell(column);
    }
    csv += '\n';
  };
  line([](const std::string& column) { return column; });
  for (const Json& row : rows) {
    std::size_t lines = 1;
    for (const Json& value : row) {
      lines = value.is_array() ? value.size() : lines;
    }
    for (std::size_t i = 0; i < lines; ++i) {
      line([&](const std::string& column) {
        const Json value = row.value(column, Json());
        return value.is_null() ? "" : (value.is_array() ? value.at(i) : value).dump();
      });
    }
  }
  return csv;
}

inline void write_tables(Json json, const std::filesystem::path& out) {
  write_text(out / "report.json", json.dump(1) + '\n');
  json["machine"] = {json["machine"]};
  json["forms"] = json["reference"]["forms"];
  for (const char* table : {"machine", "models", "measured", "forms", "counted", "load"}) {
    write_text(out / (std::string(table) + ".csv"), to_csv(json[table]));
  }
}

}  // namespace moe::report
