# Which share of the choices of each source's tokens each expert has; experts by the source that
# they prefer.
name = 'heat'; width = 1200; height = 620
load 'style.gp'
stats 'load.csv' using 'block' nooutput
blocks = int(STATS_max) + 1
unset grid
unset key
set palette defined (0 '#ffffff', 0.5 '#0072B2', 1 '#000000')
set cblabel "Share of the source's choices"
set ylabel 'Expert'
set xtics rotate by -45
load 'sources.gp'
unset datafile columnheaders
set multiplot layout 1,blocks
do for [b = 0:blocks - 1] {
  set title sprintf('Block %d', b)
  plot sprintf('heat%d.csv', b) skip 1 matrix rowheaders using 1:2:3 with image
}
unset multiplot
