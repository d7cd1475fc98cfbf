// SPDX-License-Identifier: Apache-2.0
// The report for the eye: page.html with the report's JSON in its place, and the pictures that
// gnuplot draws from the CSV files. Page and scripts lie beside this file. The scripts are copied
// to the report, so that whoever wants another look edits and runs them there.
#pragma once

#include <cstdlib>
#include <sstream>

#include "tables.hpp"

namespace moe::report {

inline const std::filesystem::path sources = MOE_REPORT_SOURCES;

inline bool have_gnuplot() { return std::system("gnuplot --version > /dev/null 2>&1") == 0; }

/// Each as SVG and as PNG. Throws std::runtime_error if gnuplot fails.
inline void draw_pictures(const std::filesystem::path& out) {
  using enum std::filesystem::copy_options;
  std::filesystem::copy(sources / "plots", out, recursive | overwrite_existing);
  for (const auto& entry : std::filesystem::directory_iterator(sources / "plots")) {
    const std::string script = entry.path().filename().string();
    for (const std::string kind : {"svg", "png"}) {
      const std::string command = "cd '" + out.string() + "' && gnuplot -e \"kind = '" + kind +
                                  "'\" " + script + " > gnuplot.log 2>&1";
      if (script != "style.gp" && std::system(command.c_str()) != 0) {
        throw std::runtime_error("moe_report: gnuplot failed on " + script + ", see " +
                                 (out / "gnuplot.log").string());
      }
    }
  }
}

/// Throws std::runtime_error if page.html is not there or the page cannot be written.
inline void write_page(const Json& json, const std::filesystem::path& out) {
  const std::string place = "@REPORT@", escaped_less_than = "\\u003c";
  std::ostringstream text;
  text << std::ifstream(sources / "page.html").rdbuf();
  std::string page = text.str(), data;
  for (const char c : json.dump()) {
    data += c == '<' ? escaped_less_than : std::string(1, c);  // else </script> could end it
  }
  const std::size_t begin = page.find(place);
  if (begin == std::string::npos) {
    throw std::runtime_error("moe_report: no " + place + " in " + (sources / "page.html").string());
  }
  write_text(out / "index.html", page.replace(begin, place.size(), data));
}

}  // namespace moe::report
