# What the pictures share. In the folder of a report `gnuplot time.gp` draws time.svg, and
# `gnuplot -e "kind = 'png'" time.gp` time.png. A script first sets its name, width and height.
if (!exists('kind')) kind = 'svg'
if (kind eq 'svg') {
  set terminal svg size width,height font 'DejaVu Sans,Arial,sans-serif,14' background '#ffffff'
} else {
  set terminal pngcairo size width,height font 'DejaVu Sans,11' background '#ffffff'
}
set output name.'.'.kind
set encoding utf8
set autoscale fix
set border 3 lc rgb '#666666'
set tics nomirror textcolor rgb '#333333'
set grid lc rgb '#e4e4e4' lt 1 lw 1
set key outside top center vertical maxrows 1 reverse Left samplen 2

# Dense is always black; then those of Okabe and Ito, which colour-blind readers can tell apart, but for
# their yellow, in whose place is Tol's wine.
colour(i) = word('#000000 #0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9 #882255', i % 8 + 1)
grey = '#999999'

set datafile separator ','
set datafile columnheaders
set datafile missing NaN
# A figure of the rows whose column `name` is `value`; the others are not in the curve.
of(name, value, figure) = strcol(name) eq value ? figure : NaN

# The values of a column, in order; experts and top_k are 0 for dense layers, which come first.
with(list, value) = strstrt(list, '"'.value.'"') ? list : list.' "'.value.'"'
last(list) = word(list, words(list))
layers = ''; experts = ''; top_k = ''; tokens = ''
stats 'measured.csv' using (layers = with(layers, strcol('layer')), \
                            experts = with(experts, strcol('experts')), \
                            top_k = with(top_k, strcol('top_k')), \
                            tokens = with(tokens, strcol('tokens')), 0) nooutput
moe(experts, top_k) = ' "MoE E'.experts.' K'.top_k.'"'
coarse = moe(word(experts, 2), word(top_k, 2))
fine = moe(last(experts), last(top_k))
plural(n) = n.(n eq '1' ? ' token' : ' tokens')
stats 'machine.csv' using (fma = column('fma_roof_gflops'), read = column('read_gbs'), 0) nooutput

gflops_tics = "(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)"

# A curve over the number of parameters: layers of the i-th top_k, at n tokens.
of_curve(n, i, figure) = of('tokens', n, of('top_k', word(top_k, i), figure))
curve = "with linespoints lw 2 pt (i == 1 ? 5 : 3 + 2 * i) ps (i == 1 ? 0.9 : 2.5 - 0.3 * i) \
  lc rgb colour(i - 1) title (i == 1 ? 'dense' : 'MoE, top '.word(top_k, i))"
