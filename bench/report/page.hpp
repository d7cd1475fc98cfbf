// SPDX-License-Identifier: Apache-2.0
// The report as one static page: index.html, with the pictures and files beside it.
#pragma once

#include "bars.hpp"
#include "summary.hpp"

namespace moe::report {

inline std::string escaped(std::string_view text) {
  std::string html;
  for (const char c : text) {
    html += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  }
  return html;
}

/// A table; the first cells of each row are names, the rest numbers.
class Table {
 public:
  explicit Table(const std::vector<std::string>& head) { row(head, "th"); }

  Table& row(const std::vector<std::string>& cells, std::string_view tag = "td") {
    html_ += "<tr>";
    for (const std::string& cell : cells) {
      html_ += "<" + std::string(tag) + ">" + escaped(cell) + "</" + std::string(tag) + ">";
    }
    html_ += "</tr>\n";
    return *this;
  }
  std::string html(std::string_view kind = "") const {
    return "<table class=\"" + std::string(kind) + "\">\n" + html_ + "</table>\n";
  }

 private:
  std::string html_;
};

inline std::string model_table(const Report& report) {
  Table table({"Model", "Total", "Published", "Diff.", "Active", "Published", "Diff.",
               "GFLOP per token", "Dense of equal active FLOPs: total",
               "Dense of equal total: GFLOP per token", "Source and note"});
  for (const ModelRow& r : report.models) {
    const PublishedCount& p = r.model.published;
    table.row({std::string(r.model.name), count(static_cast<double>(r.cost.total)), count(p.total),
               signed_percent(r.total_deviation()), count(static_cast<double>(r.cost.active)),
               count(p.active), signed_percent(r.active_deviation()),
               fixed(1e-9 * r.cost.flops_per_token, 2),
               count(static_cast<double>(r.equal_active.total)),
               fixed(1e-9 * r.equal_total.flops_per_token, 1),
               std::string(p.source) + ". " + std::string(r.model.note)});
  }
  return table.html("notes");
}

inline std::string measured_table(const Report& report) {
  Table table({"Layer", "Tokens", "Total", "µs per token", "GFLOP/s", "of FMA roof", "of read roof",
               "Distinct experts", "FLOP ratio", "Speed-up", "route", "plan", "gather", "experts",
               "combine"});
  for (const Measured& m : report.measured) {
    const auto stage = [&](double seconds) {
      return m.dense() ? std::string() : percent(seconds / m.stages.sum());
    };
    table.row({m.layer, std::to_string(m.tokens), count(m.total_params),
               significant(1e6 * m.seconds / static_cast<double>(m.tokens), 3),
               fixed(m.gflops(), 1), percent(m.fma_share(report.machine)),
               percent(m.read_share(report.machine)), m.dense() ? "" : fixed(m.distinct_experts, 1),
               fixed(m.flop_ratio, 1), fixed(m.speedup, 1), stage(m.stages.route),
               stage(m.stages.plan), stage(m.stages.gather), stage(m.stages.experts),
               stage(m.stages.combine)});
  }
  return table.html();
}

inline std::string counted_table(const Report& report) {
  Table table({"Case", "Counted", "Predicted", ""});
  for (const Counted& c : report.counted) {
    table.row({c.name, std::to_string(c.counted_flops), std::to_string(c.predicted_flops),
               c.counted_flops == c.predicted_flops ? "equal" : "DIFFERENT"});
  }
  return table.html();
}

/// Nothing where moe_peers was not run.
inline std::string peer_section(const Report& report) {
  if (report.peers.empty()) {
    return "";
  }
  Table table({"Library", "Pass", "Layer", "Tokens", "ms", "ms of moe", "ratio"});
  for (const PeerRow& p : report.peers) {
    table.row({p.peer, p.pass, p.shape, std::to_string(p.tokens), milliseconds(p.peer_seconds),
               milliseconds(p.our_seconds), fixed(p.ratio, 2)});
  }
  return "<h2>Other libraries</h2>\n<p>The same layer in float32, measured by "
         "<code>moe_peers</code> in turn with ours: the packed layer, or <code>MoELayer</code> in "
         "training. LibTorch routes by itself, the others take our routing and compute the "
         "experts; oneDNN has its weights packed once.</p>\n" +
         table.html();
}

inline std::string machine_table(const Machine& m) {
  return Table({"CPU", m.cpu})
      .row({"Threads", std::to_string(m.threads)})
      .row({"Compiler", m.compiler})
      .row({"Flags", m.flags})
      .row({"Instruction sets", m.simd})
      .row({"Multiply-add roof", fixed(1e-9 * m.fma_roof, 1) + " GFLOP/s, float32"})
      .row({"Read roof", fixed(1e-9 * m.read_roof, 1) + " GB/s"})
      .html("notes");
}

inline constexpr std::string_view page_style = R"(<style>
body { font: 16px/1.5 'DejaVu Sans', Arial, sans-serif; color: #222; max-width: 1240px;
       margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; }
th, td { border-bottom: 1px solid #ddd; padding: 3px 8px; text-align: right; vertical-align: top; }
td:first-child, th:first-child { text-align: left; white-space: nowrap; }
table.notes td:last-child, table.notes th:last-child { text-align: left; }
img { max-width: 100%; } pre { font-size: 12px; overflow-x: auto; background: #f6f6f6; padding: 1em; }
</style>
)";

inline std::string pictures_html(const Report& report, const std::vector<Picture>& pictures) {
  if (!report.pictures) {
    return "<p><b>No pictures:</b> gnuplot is not installed or failed (gnuplot.log). The tables "
           "below hold all figures.</p>\n";
  }
  std::string html;
  for (const Picture& picture : pictures) {
    html += "<h3>" + escaped(picture.title()) + "</h3>\n<img src=\"" + picture.name() +
            ".svg\" alt=\"" + escaped(picture.title()) + "\">\n";
  }
  return html;
}

inline std::string page(const Report& report, const std::vector<Picture>& pictures) {
  const bench::Grid& grid = report.grid;
  std::string html =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<title>moe: dense against Mixture-of-Experts</title>\n";
  html += page_style;
  html += "</head><body>\n<h1>Dense against Mixture-of-Experts layers</h1>\n";
  html += machine_table(report.machine);
  html += pictures_html(report, pictures);
  html +=
      "<h2>Published models</h2>\n<p>Counted from their configs; the MoE layers by "
      "<code>moe::parameters</code>. FLOPs per token: 2 for each weight that multiplies the "
      "token (projections, routers, chosen and shared experts, dense layers, head). Left out "
      "are embedding look-ups, norms, biases, activations, and the scores of the attention, "
      "which grow with the context. Active parameters are counted as the publisher counts "
      "them.</p>\n" +
      model_table(report);
  html +=
      "<h2>Measured on this machine</h2>\n<p>SwiGLU layers of width " +
      std::to_string(grid.d_model) +
      " in float32, inference, packed (<code>moe::pack&lt;float&gt;</code>); a dense layer is one "
      "packed expert, whose routing takes about 3 % of the time at F1024 and less than 0.5 % from "
      "F8192 on. In each MoE layer the chosen experts are together as wide as the dense layer F" +
      std::to_string(grid.active_d_ff) +
      ": equal active FLOPs. Speed-up and FLOP ratio are to the dense layer of equal total "
      "size. Medians of at least 3 repetitions; before each, the caches are cleared by the "
      "probe of the read roof, as in a model of many layers, and the input changes. GFLOP/s "
      "and shares count the matrix products of <code>moe/cost.hpp</code> and the bytes of the "
      "experts that were really touched, plus rows in and out. Roofs are the best of the "
      "probes made between all cases. The steps (route, plan, gather, experts, combine) are those "
      "of <code>MoELayer</code>, unpacked, one by one through the public functions; they write "
      "the same bits. The reference layer below is measured in every form, MoE and dense in "
      "turn.</p>\n<details open><summary>Milliseconds of a forward, and speed-up over "
      "the dense layer of equal total size</summary><pre>" +
      escaped(summary(report)) + "</pre></details>\n<details><summary>All figures</summary>" +
      measured_table(report) + "</details>\n";
  html += peer_section(report);
  html +=
      "<h2>Counted</h2>\n<p>A layer of a scalar that counts its own operations, against "
      "<code>moe/cost.hpp</code>. Each + - * / and each call of exp, erf, tanh, log or sqrt is "
      "one FLOP; comparisons, signs, copies and conversions are none.</p>\n" +
      counted_table(report);
  html +=
      "<p>Files: <a href=\"report.json\">report.json</a>, <a href=\"models.csv\">models.csv"
      "</a>, <a href=\"measured.csv\">measured.csv</a>, <a href=\"forms.csv\">forms.csv</a>, <a "
      "href=\"counted.csv\">counted.csv</a>; the pictures as PNG and their gnuplot scripts beside "
      "them. Made in " +
      fixed(report.seconds, 0) + " s.</p>\n</body></html>\n";
  return html;
}

}  // namespace moe::report
