# The load of each block's busiest expert over the mean, and in each block how the load of every
# expert went, in the rows that experts have in heat.gp.
name = 'load'; width = 1200; height = 480
load 'style.gp'
stats 'load.csv' using 'block' nooutput
blocks = int(STATS_max) + 1
set format x '%.0s %c'
set xlabel 'Tokens'
set xtics rotate by -45
set key bottom right
set multiplot layout 1,blocks + 1
set ylabel 'Busiest expert over the mean'
plot [] [0:*] for [b = 0:blocks - 1] for [s in seeds] 'load.csv' \
  using (column('block') == b ? of('moe', s, column('tokens')) : NaN):'largest_over_mean' \
  with linespoints pt 7 ps 0.6 lw 2 lc rgb colour(b + 1) \
  title (s eq word(seeds, 1) ? sprintf('block %d', b) : '')
set ylabel 'Expert, by the source that it prefers'
unset ytics
set palette defined (0 '#ffffff', 1 '#0072B2', 3 '#000000')
set cbrange [0:3]
set cblabel 'Load over the mean'
unset key
set autoscale fix
do for [b = 0:blocks - 1] {
  set title sprintf('Block %d', b)
  plot sprintf('time%d.csv', b) using 'tokens':'row':'load' with image
}
unset multiplot
