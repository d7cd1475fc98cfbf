# What the pictures share. In the folder of a report `gnuplot curve.gp` draws curve.svg, and
# `gnuplot -e "kind = 'png'" curve.gp` curve.png. A script first sets its name, width and height.
if (!exists('kind')) kind = 'svg'
if (kind eq 'svg') {
  set terminal svg noenhanced size width,height font 'DejaVu Sans,Arial,sans-serif,14' background '#ffffff'
} else {
  set terminal pngcairo noenhanced size width,height font 'DejaVu Sans,11' background '#ffffff'
}
set output name.'.'.kind
set encoding utf8
set border 3 lc rgb '#666666'
set tics nomirror textcolor rgb '#333333'
set grid lc rgb '#e4e4e4' lt 1 lw 1

# Dense is always black; then those of Okabe and Ito, which colour-blind readers can tell apart.
colour(i) = word('#000000 #0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9', i % 7 + 1)

set datafile separator ','
set datafile columnheaders
# A figure of the rows of one run; the others are not in the curve.
of(model, seed, figure) = strcol('model') eq model && strcol('seed') eq seed ? figure : NaN
with(list, value) = strstrt(list, '"'.value.'"') ? list : list.' "'.value.'"'
models = ''; seeds = ''
stats 'curve.csv' using (models = with(models, strcol('model')), \
                         seeds = with(seeds, strcol('seed')), 0) nooutput
set datafile missing NaN
number(model) = model eq 'dense' ? 0 : model eq 'moe' ? 1 : 6
