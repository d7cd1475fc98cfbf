// SPDX-License-Identifier: Apache-2.0
// A gnuplot script from pieces of text, drawn as SVG and as PNG. Scripts carry their data, so that
// whoever wants another look edits the script and runs it again.
#pragma once

#include <array>
#include <cstdlib>
#include <sstream>

#include "tables.hpp"

namespace moe::report {

// The colours of Okabe and Ito, which colour-blind readers can tell apart. Dense is always black.
inline constexpr std::string_view black = "#000000", grey = "#999999";
inline constexpr std::array<std::string_view, 6> colours{"#0072B2", "#E69F00", "#009E73",
                                                         "#D55E00", "#CC79A7", "#56B4E9"};

inline std::string_view colour(std::size_t i) { return colours[i % colours.size()]; }

inline std::string in_quotes(std::string_view text) { return "'" + std::string(text) + "'"; }

class Picture {
 public:
  Picture(std::string name, std::string title, int width, int height)
      : name_(std::move(name)), title_(std::move(title)), width_(width), height_(height) {}

  const std::string& name() const { return name_; }
  const std::string& title() const { return title_; }

  /// One line of the script.
  Picture& operator<<(std::string_view line) {
    body_ << line << '\n';
    return *this;
  }

  /// Starts a block of data; end it with end_data().
  Picture& data(std::string_view name) { return *this << "$" + std::string(name) + " << END"; }
  Picture& end_data() { return *this << "END"; }

  /// `parts` plots in one row.
  Picture& panels(int parts) { return *this << "set multiplot layout 1," + std::to_string(parts); }

  std::string script(std::string_view terminal) const {
    std::ostringstream text;
    text << "set encoding utf8\nset terminal " << terminal << " size " << width_ << ',' << height_
         << (terminal == "svg" ? " font 'DejaVu Sans,Arial,sans-serif,14' background '#ffffff'"
                               : " font 'DejaVu Sans,11' background '#ffffff'")
         << "\nset output '" << name_ << (terminal == "svg" ? ".svg'" : ".png'")
         << "\nset border 3 lc rgb '#666666'\nset tics nomirror textcolor rgb '#333333'\n"
            "set grid lc rgb '#e4e4e4' lt 1 lw 1\nset key reverse Left samplen 2\n"
         << body_.str() << "unset multiplot\n";
    return text.str();
  }

 private:
  std::string name_, title_;
  int width_, height_;
  std::ostringstream body_;
};

/// Writes the scripts of the picture and runs gnuplot on them. False if that fails: gnuplot.log
/// then says why.
inline bool draw(const Picture& picture, const std::filesystem::path& out) {
  for (const std::string terminal : {"svg", "pngcairo"}) {
    const std::string script = picture.name() + (terminal == "svg" ? ".svg.gp" : ".png.gp");
    write_text(out / script, picture.script(terminal));
    const std::string command =
        "cd '" + out.string() + "' && gnuplot '" + script + "' > gnuplot.log 2>&1";
    if (std::system(command.c_str()) != 0) {
      return false;
    }
  }
  return true;
}

inline bool have_gnuplot() { return std::system("gnuplot --version > /dev/null 2>&1") == 0; }

}  // namespace moe::report
