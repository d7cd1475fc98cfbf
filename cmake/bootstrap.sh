# Finds out what a build needs and this machine lacks; installs it by apt, and names it elsewhere.
# POSIX sh, to be sourced:
#   . cmake/bootstrap.sh && moe_bootstrap cmake ninja c++ eigen
# When nothing is missing it needs neither network nor root. MOE_NO_INSTALL=1 forbids installing.

# The kinds: a `tool` is a command that must be there; a `library` is a CMake package, which CMake
# may download instead; an `extra` is a command that can be done without.
#     name       kind     looks for      apt                 dnf                     pacman         brew
moe_packages='
      cmake      tool     cmake          cmake               cmake                   cmake          cmake
      ninja      tool     ninja          ninja-build         ninja-build             ninja          ninja
      c++        tool     c++            g++                 gcc-c++                 gcc            gcc
      eigen      library  Eigen3         libeigen3-dev       eigen3-devel            eigen          eigen
      nlohmann   library  nlohmann_json  nlohmann-json3-dev  json-devel              nlohmann-json  nlohmann-json
      gtest      library  GTest          libgtest-dev        gtest-devel             gtest          googletest
      benchmark  library  benchmark      libbenchmark-dev    google-benchmark-devel  benchmark      google-benchmark
      cli11      library  CLI11          libcli11-dev        cli11-devel             cli11          cli11
      gnuplot    extra    gnuplot        gnuplot-nox         gnuplot                 gnuplot        gnuplot
'

# Prints a command, then runs it.
moe_run() {
  printf '+ %s\n' "$*"
  "$@"
}

# Is there a CMake package of this name under any usual prefix? A wrong answer does no harm: CMake
# has the last word.
moe_has_library() (
  IFS=:
  for prefix in ${CMAKE_PREFIX_PATH:-} ${CONDA_PREFIX:-} /usr /usr/local /opt/homebrew; do
    for file in "$prefix"/lib*/cmake/*/"$1"[Cc]onfig.cmake "$prefix"/lib/*/cmake/*/"$1"[Cc]onfig.cmake \
                "$prefix"/share/cmake/*/"$1"[Cc]onfig.cmake "$prefix"/share/*/cmake/"$1"[Cc]onfig.cmake; do
      if [ -e "$file" ]; then exit 0; fi
    done
  done
  exit 1
)

# Sets moe_tools, moe_libraries and moe_extras to what is missing of the given names, and
# moe_apt, moe_dnf, moe_pacman and moe_brew to the packages with it.
moe_probe() {
  moe_tools='' moe_libraries='' moe_extras=''
  moe_apt='' moe_dnf='' moe_pacman='' moe_brew=''
  while read -r name kind target apt dnf pacman brew; do
    case " $* " in *" $name "*) ;; *) continue ;; esac
    if [ "$name" = c++ ]; then target=${CXX:-c++}; fi
    case $kind in
      library) if moe_has_library "$target"; then continue; fi; moe_libraries="$moe_libraries $name" ;;
      *)
        if command -v "${target%% *}" >/dev/null 2>&1; then continue; fi
        if [ "$kind" = tool ]; then moe_tools="$moe_tools $name"; else moe_extras="$moe_extras $name"; fi ;;
    esac
    moe_apt="$moe_apt $apt" moe_dnf="$moe_dnf $dnf"
    moe_pacman="$moe_pacman $pacman" moe_brew="$moe_brew $brew"
  done <<EOF
$moe_packages
EOF
}

# Installs the Debian packages given; false if this user or machine cannot.
moe_apt_install() {
  if [ "${MOE_NO_INSTALL:-0}" = 1 ] || ! command -v apt-get >/dev/null 2>&1; then return 1; fi
  if [ "$(id -u)" = 0 ]; then
    moe_root=''
  elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    moe_root=sudo
  else
    return 1
  fi
  moe_run $moe_root apt-get -q update || echo 'moe: apt-get update failed; going on with the lists at hand'
  moe_run $moe_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -q install -y --no-install-recommends "$@"
}

# What a person would install: for apt the command, for others names of packages that nobody has tried.
moe_print_install_lines() {
  if command -v apt-get >/dev/null 2>&1; then echo "  apt-get install -y --no-install-recommends$moe_apt"; fi
  if command -v dnf >/dev/null 2>&1; then echo "  packages of dnf, not tried:$moe_dnf"; fi
  if command -v pacman >/dev/null 2>&1; then echo "  packages of pacman, not tried:$moe_pacman"; fi
  if command -v brew >/dev/null 2>&1; then echo "  packages of brew, not tried:$moe_brew"; fi
}

# Makes sure of the given names of the table. Ends the script if a tool cannot be had.
moe_bootstrap() {
  moe_probe "$@"
  if [ -n "$moe_apt" ]; then
    echo "moe: missing:$moe_tools$moe_libraries$moe_extras"
    if moe_apt_install $moe_apt; then moe_probe "$@"; fi
  fi
  if [ -n "$moe_apt" ]; then
    echo "moe: still missing:$moe_tools$moe_libraries$moe_extras. To be installed:"
    moe_print_install_lines
    if [ -n "$moe_tools" ]; then
      echo "moe: cannot go on without:$moe_tools" >&2
      exit 1
    fi
    if [ -n "$moe_libraries" ]; then echo "moe: going on; CMake downloads libraries if it can"; fi
  fi
  moe_cmake=$(cmake --version | sed -n '1s/[^0-9]*\([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
  if [ "${moe_cmake% *}" -lt 3 ] || { [ "${moe_cmake% *}" = 3 ] && [ "${moe_cmake#* }" -lt 25 ]; }; then
    echo "moe: needs CMake 3.25 or newer, but $(command -v cmake) is $(cmake --version | head -n 1)" >&2
    exit 1
  fi
}
