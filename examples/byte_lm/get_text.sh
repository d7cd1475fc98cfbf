#!/bin/sh
# get_text.sh [DIRECTORY]: text of several languages for byte_lm, one file a language, at most 4 MB
# each, from Debian's packages of manual pages and of the Debian Administrator's Handbook. Packages
# are downloaded and unpacked in a temporary folder; nothing is installed. Needs apt-get, dpkg and
# the usual tools.
set -eu

out=${1:-text}
limit=4000000
pages='manpages manpages-dev manpages-de manpages-fr manpages-fr-dev manpages-es manpages-it
  manpages-pl manpages-ru manpages-uk manpages-ja manpages-ja-dev manpages-zh manpages-tr
  manpages-el'
books='debian-handbook gimp-help-el'
languages='en de fr es it pl ru uk ja zh tr el'

mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir root
for package in $pages $books; do
  if apt-get download -q "$package" > log 2>&1; then
    echo "unpacks, without installing: $(echo "${package}"_*.deb)"
    dpkg -x "${package}"_*.deb root
    rm "${package}"_*.deb
  else
    echo "left out, cannot be downloaded: $package" >&2
  fi
done

# Of a macro its arguments are text, but for those that define or configure something.
strip_roff() {
  sed -E -e "/^[.'] *(\\\\\"|TH|so|ds|de|nr|if|ie|el|ft|tr|rm|ad|na|nh|hy|ta|TS|TE|mso|Dd|Dt|Os)/d" \
    -e "/^'\\\\\"/d" -e "/^\\.\\.\$/d" -e "s/^[.'] *[A-Za-z0-9]+ ?//" \
    -e 's/\\f(\[[^]]*\]|\(..|.)//g' -e 's/\\s[-+]?[0-9]//g' -e 's/\\(m|F)\[[^]]*\]//g' \
    -e 's/\\[n*gk](\[[^]]*\]|\(..)//g' \
    -e 's/\\\((aq|oq|cq)/'"'"'/g' -e 's/\\\((dq|lq|rq)/"/g' -e 's/\\\((en|em|mi|hy)/-/g' \
    -e 's/\\\(bu/*/g' -e 's/\\\[[^]]*\]//g' -e 's/\\[*(]?\(..//g' -e 's/\\[&|^,\/:%c)]//g' \
    -e 's/\\".*//' -e 's/\\([- ~.'"'"'`])/\1/g' -e 's/\\(e|\\)/\\/g' -e 's/"([^"]*)"/\1/g'
}

strip_html() {
  tr '\n' ' ' | sed -E -e 's/<(head|script|style)[ >][^\n]*<\/(head|script|style)>//g' \
    -e 's/<\/?(p|li|h[1-6]|div|tr|pre|dt|dd|title|br)[^>]*>/\n/g' -e 's/<[^>]*>//g' \
    -e 's/&nbsp;|&#160;/ /g' -e 's/&lt;/</g' -e 's/&gt;/>/g' -e 's/&quot;/"/g' -e 's/&amp;/\&/g'
  echo
}

# Files in an order that has nothing to do with their names: what is last is kept from training.
shuffled() {
  while read -r file; do
    echo "$(basename "$file" | md5sum | cut -c 1-16) $file"
  done | sort | cut -d ' ' -f 2-
}

text_of() {
  case $1 in
    en) folders='root/usr/share/man/man*' ;;
    zh) folders='root/usr/share/man/zh_CN*/man*' ;;
    *) folders="root/usr/share/man/$1/man*" ;;
  esac
  # shellcheck disable=SC2086  # a pattern of several folders
  {
    find $folders -type f -name '*.gz' 2> /dev/null || true
    find root/usr/share/doc/debian-handbook/html root/usr/share/gimp -type f -name '*.html' |
      grep -E "/$1(-[A-Z]+)?/" || true
  } | shuffled | while read -r file; do
    case $file in
      *.gz) gzip -dc "$file" | strip_roff ;;
      *) strip_html < "$file" ;;
    esac
  done
}

for language in $languages; do
  text_of "$language" | sed -E 's/[ \t]+/ /g; s/^ //; s/ $//' | awk 'length > 2 && !seen[$0]++' |
    head -c $limit > "$out/$language.txt"
  echo "$(wc -c < "$out/$language.txt") bytes of $out/$language.txt"
done
