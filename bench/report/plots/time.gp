# Time per token against total parameters, for few, some and many tokens at a time.
name = 'time'; width = 1200; height = 470
load 'style.gp'
set logscale xy
set format x '%.0s %c'
set format y '%g'
set offsets graph 0.05, graph 0.05, graph 0.05, graph 0.1
set xlabel 'Total parameters of the layer'
set ylabel 'Milliseconds per token' offset 1
set key at screen 0.5,0.97 center top
set multiplot layout 1,3 margins screen 0.06,0.99,0.17,0.82 spacing screen 0.07
do for [n in word(tokens, 1).' '.word(tokens, words(tokens) / 2 + 1).' '.last(tokens)] {
  set title plural(n).(n eq '1' ? '' : ' at a time')
  plot for [i = 1:words(top_k)] 'measured.csv' using 'total_params': \
    (of_curve(n, i, 1e3 * column('seconds_per_token'))) @curve
  unset key
}
unset multiplot
