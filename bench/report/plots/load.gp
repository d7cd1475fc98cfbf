# Rows of each expert, most loaded first, for each of two routings.
name = 'load'; width = 1200; height = 460
load 'style.gp'
routings = ''
asked = "(column('kept') + column('dropped'))"
stats 'load.csv' using (routings = with(routings, strcol('routing')), \
                        capacity = column('capacity'), @asked) nooutput
experts = STATS_records / words(routings)
most = STATS_max
set xtics 8,8 out
set style fill solid 1.0 noborder
set boxwidth 0.8
set xlabel 'Experts, sorted by load'
set ylabel 'Rows'
set key at screen 0.5,0.97 center top
set multiplot layout 1,2 margins screen 0.07,0.99,0.17,0.82 spacing screen 0.07
expert(routing) = of('routing', routing, int(column(0)) % experts + 1)
do for [routing in routings] {
  stats 'load.csv' using (of('routing', routing, column('dropped_share'))):'variation' nooutput
  set title sprintf('%s: %.0f %% dropped, variation %.2f', \
                    routing, 100 * STATS_mean_x, STATS_mean_y)
  plot [0:experts + 1] [0:1.05 * most] 'load.csv' \
      using (expert(routing)):@asked with boxes lc rgb colour(4) title 'dropped', \
    '' using (expert(routing)):'kept' with boxes lc rgb colour(1) title 'computed', \
    capacity with lines lw 2 dt 2 lc rgb colour(0) title sprintf('capacity, %d rows', capacity)
  unset key
}
unset multiplot
