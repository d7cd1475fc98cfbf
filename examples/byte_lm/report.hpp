// SPDX-License-Identifier: Apache-2.0
// What is left of a comparison: records.jsonl as they came, CSV files for gnuplot with its pictures
// if it is installed, results.json, and all of it as one page. Scripts and page lie beside this
// file; the scripts are copied, so that whoever wants another look edits and runs them there.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>

#include "figures.hpp"

namespace byte_lm {

namespace fs = std::filesystem;
inline const fs::path report_sources = MOE_BYTE_LM_SOURCES;

inline void write_text(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  if (!(file << text).flush()) {
    throw std::runtime_error("cannot write " + path.string());
  }
}

class Report {
 public:
  /// Makes the folder.
  explicit Report(fs::path out) : out_(std::move(out)) {
    fs::create_directories(out_);
    lines_.open(out_ / "records.jsonl");
    if (!lines_) {
      throw std::runtime_error("cannot write " + (out_ / "records.jsonl").string());
    }
  }

  const fs::path& folder() const { return out_; }

  void add(Json record) {
    lines_ << record.dump() << std::endl;  // a run that is killed leaves what it had
    if (!lines_) {
      throw std::runtime_error("cannot write " + (out_ / "records.jsonl").string());
    }
    records_.push_back(std::move(record));
  }

  /// All figures, pictures and the page; `settings` as they are. Returns the results.
  Json write(const Json& settings, bool pareto) {
    Json results{{"settings", settings}, {"runs", Json::array()}};
    for (const Json& r : records_) {
      if (r["event"] == "end") {
        results["runs"].push_back(r);
      }
    }
    results["margins"] = margins_of(records_);
    results["seeds"] = seeds_of(records_, settings["tokens"].get<std::int64_t>());
    results["balance"] = balance_of(records_);
    results["pareto"] = pareto ? pareto_of(records_) : Json::array();
    write_curves();
    write_pareto(results["pareto"]);
    const bool any_moe = write_maps(settings["sources"]);
    const bool has_gnuplot = std::system("gnuplot --version > /dev/null 2>&1") == 0;
    fs::remove(out_ / "gnuplot.log");
    results["pictures"] = Json::array();
    for (const std::string picture : {"pareto", "curve", "load", "heat"}) {
      if ((picture == "pareto") == pareto && any_moe && has_gnuplot && draw(picture)) {
        results["pictures"].push_back(picture);
      }
    }
    results["records"] = records_;
    write_text(out_ / "results.json", results.dump(1));
    write_page(results);
    return results;
  }

 private:
  static std::string text(const Json& record, const char* key) {
    return record.value(key, std::string());
  }

  void write_curves() const {
    std::ostringstream curve, load;
    curve << "model,seed,tokens,seconds,training_flops,validation_bits\n";
    load << "model,seed,block,tokens,largest_over_mean,idle,starved\n";
    for (const Json& r : records_) {
      const std::string run = text(r, "model") + ',' + r["seed"].dump() + ',';
      if (r["event"] == "evaluation") {
        curve << run << r["tokens"] << ',' << r["seconds"] << ',' << r["training_flops"] << ','
              << r["validation_bits"] << '\n';
      }
      for (std::size_t block = 0; r.contains("load") && block < r["load"].size(); ++block) {
        const Json& of = r["load"][block];
        load << run << block << ',' << r["tokens"] << ',' << of["largest_over_mean"] << ','
             << of["idle"] << ',' << of["starved"] << '\n';
      }
    }
    write_text(out_ / "curve.csv", curve.str());
    write_text(out_ / "load.csv", load.str());
  }
  void write_pareto(const Json& points) const {
    std::ostringstream rows;
    rows << "model,seed,experts,parameters,forward_flops,seconds,test_bits\n";
    for (const Json& r : points) {
      const std::string model = text(r, "model");  // "dense_f90", "moe_e8_k2"
      const std::size_t cut = model.find("_k");
      rows << (cut == std::string::npos ? "dense" : "MoE k=" + model.substr(cut + 2)) << ','
           << r["seed"] << ',' << (cut == std::string::npos ? "" : model.substr(5, cut - 5)) << ','
           << r["parameters"] << ',' << r["forward_flops_per_token"] << ',' << r["seconds"] << ','
           << r["test_bits"] << '\n';
    }
    write_text(out_ / "pareto.csv", rows.str());
  }

  /// The text with each `quote` doubled, between two of them.
  static std::string quoted(const std::string& text, char quote) {
    std::string out(1, quote);
    for (const char c : text) {
      out.append(c == quote ? 2 : 1, c);
    }
    return out + quote;
  }
  /// As RFC 4180 has it.
  static std::string csv_field(const std::string& text) {
    return text.find_first_of(",\"\r\n") == std::string::npos ? text : quoted(text, '"');
  }
  /// For gnuplot, which does not read RFC 4180: at its quotes and commas a label would end.
  void write_source_tics(const Json& sources) const {
    std::string tics;
    for (std::size_t s = 0; s < sources.size(); ++s) {
      tics += (s == 0 ? "" : ", ") + quoted(sources[s].get<std::string>(), '\'') + ' ' +
              std::to_string(s);
    }
    write_text(out_ / "sources.gp", "set xtics (" + tics + ")\n");
  }

  /// Of the last MoE that ended, for each block: which share of a source's choices each expert has,
  /// experts by the source that they prefer; and, in the same order, the load over time.
  bool write_maps(const Json& sources) const {
    const auto last = std::find_if(records_.rbegin(), records_.rend(),
                                   [](const Json& r) { return r.contains("specialisation"); });
    if (last == records_.rend()) {
      return false;
    }
    write_source_tics(sources);
    for (std::size_t b = 0; b < (*last)["specialisation"].size(); ++b) {
      const auto shares =
          shares_of((*last)["specialisation"][b]["counts"].get<std::vector<std::vector<double>>>());
      const std::vector<std::size_t> order = order_of(shares);
      std::ostringstream heat, time;
      for (const Json& name : sources) {
        heat << ',' << csv_field(name.get<std::string>());
      }
      for (std::size_t i = 0; i < order.size(); ++i) {
        heat << '\n' << order[i];
        for (const double share : shares[order[i]]) {
          heat << ',' << share;
        }
      }
      time << "tokens,row,expert,load\n";
      for (const Json& r : records_) {
        if (r.contains("load") && r["seed"] == (*last)["seed"] && r["model"] == (*last)["model"]) {
          const auto choices = r["load"][b]["choices"].get<std::vector<double>>();
          const double mean = std::accumulate(choices.begin(), choices.end(), 0.0) /
                              static_cast<double>(choices.size());
          for (std::size_t i = 0; i < order.size(); ++i) {
            time << r["tokens"] << ',' << i << ',' << order[i] << ','
                 << choices[order[i]] / std::max(mean, 1.0) << '\n';
          }
        }
      }
      write_text(out_ / ("heat" + std::to_string(b) + ".csv"), heat.str() + "\n");
      write_text(out_ / ("time" + std::to_string(b) + ".csv"), time.str());
    }
    return true;
  }
  /// Of the choices of each source, where counts are those of an expert's sources, expert by
  /// expert.
  static std::vector<std::vector<double>> shares_of(std::vector<std::vector<double>> counts) {
    for (std::size_t s = 0; s < counts[0].size(); ++s) {
      const double all =
          std::accumulate(counts.begin(), counts.end(), 0.0,
                          [&](double sum, const std::vector<double>& row) { return sum + row[s]; });
      for (std::vector<double>& row : counts) {
        row[s] /= std::max(all, 1.0);
      }
    }
    return counts;
  }
  static std::vector<std::size_t> order_of(const std::vector<std::vector<double>>& shares) {
    std::vector<std::size_t> order(shares.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto preferred = [&](std::size_t e) {
      return std::max_element(shares[e].begin(), shares[e].end()) - shares[e].begin();
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return preferred(a) < preferred(b); });
    return order;
  }

  /// As SVG and as PNG; false, and said, if gnuplot fails.
  bool draw(const std::string& picture) const {
    using enum fs::copy_options;
    fs::copy(report_sources / "plots", out_, recursive | overwrite_existing);
    bool drawn = true;
    const fs::path here = fs::current_path();
    fs::current_path(out_);  // a folder may have any name, which a shell would have to be spared
    for (const std::string kind : {"svg", "png"}) {
      const std::string command =
          "gnuplot -e \"kind = '" + kind + "'\" " + picture + ".gp >> gnuplot.log 2>&1";
      drawn = drawn && std::system(command.c_str()) == 0;
    }
    fs::current_path(here);
    if (!drawn) {
      std::fprintf(stderr, "no picture %s: gnuplot failed, %s says why\n", picture.c_str(),
                   (out_ / "gnuplot.log").string().c_str());
    }
    return drawn;
  }

  void write_page(const Json& results) const {
    const std::string place = "@RESULTS@", escaped_less_than = "\\u003c";
    std::ostringstream text;
    text << std::ifstream(report_sources / "page.html").rdbuf();
    std::string page = text.str(), data;
    for (const char c : results.dump()) {
      data += c == '<' ? escaped_less_than : std::string(1, c);  // else </script> could end it
    }
    const std::size_t begin = page.find(place);
    if (begin == std::string::npos) {
      throw std::runtime_error("no " + place + " in " + (report_sources / "page.html").string());
    }
    write_text(out_ / "index.html", page.replace(begin, place.size(), data));
  }

  fs::path out_;
  std::ofstream lines_;
  std::vector<Json> records_;
};

}  // namespace byte_lm
