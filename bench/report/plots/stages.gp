# Share of each step of a forward at each number of tokens, for a coarse and a fine layer.
name = 'stages'; width = 1200; height = 480
load 'style.gp'
steps = 'experts combine plan route'
seconds(first, last) = sum [i = first:last] column(word(steps, i).'_seconds')
share(first, last) = 100 * seconds(first, last) / seconds(1, 4)
set style fill solid 1.0 noborder
set xlabel 'Tokens'
set ylabel 'Share of the time, %'
set yrange [0:100]
set xrange [0.4:words(tokens) + 0.6]
set xtics ()
set for [i = 1:words(tokens)] xtics add (word(tokens, i) i)
set key at screen 0.5,0.97 center top
set multiplot layout 1,2 margins screen 0.06,0.99,0.17,0.82 spacing screen 0.07
do for [layer in coarse.fine] {
  set title layer
  plot for [i = 4:1:-1] 'measured.csv' using \
    (of('layer', layer, int(column(0)) % words(tokens) + 1)): \
    (share(1, i) - share(i, i) / 2):(0.35):(share(i, i) / 2) \
    with boxxyerror lc rgb colour(i) title word(steps, i)
  unset key
}
unset multiplot
