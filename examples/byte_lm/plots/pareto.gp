# Bits per byte of the test against FLOPs per token and against time: a line through the dense
# models of each seed, and points of the MoEs, by how many experts a token takes, with how many
# there are.
name = 'pareto'; width = 1200; height = 560
set datafile separator ','
load 'style.gp'
set ylabel 'Test, bits per byte'
set logscale x
set format x '%.0s %c'
set key top right
set multiplot layout 1,2
kinds = ''
stats 'pareto.csv' using (kinds = with(kinds, strcol('model')), 0) nooutput
moe(kind, figure) = strcol('model') eq kind ? figure : NaN
do for [axis in 'forward_flops seconds'] {
  set xlabel axis eq 'seconds' ? 'Seconds of training' : 'FLOPs of a token, forward'
  plot for [s in seeds] 'pareto.csv' using (of('dense', s, column(axis))):'test_bits' \
      with linespoints pt 7 ps 0.7 lw 2 lc rgb colour(0) title (s eq word(seeds, 1) ? 'dense' : ''), \
    for [i = 2:words(kinds)] 'pareto.csv' using (moe(word(kinds, i), column(axis))):'test_bits' \
      with points pt 5 ps 0.9 lc rgb colour(i - 1) title word(kinds, i), \
    'pareto.csv' using (strcol('model') eq 'dense' ? NaN : column(axis)):'test_bits':'experts' \
      with labels offset 0,-0.8 font ',10' title ''
}
unset multiplot
