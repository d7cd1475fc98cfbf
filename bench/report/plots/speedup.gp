# Measured speed-up over the dense layer of equal total size, against the ratio of their FLOPs.
name = 'speedup'; width = 1000; height = 620
load 'style.gp'
set logscale xy 2
set xlabel 'FLOPs of the dense layer of equal total size / FLOPs of the MoE layer'
set ylabel 'Measured speed-up'
set offsets 0, 0, 0, graph 0.03
beside(i) = 0.88 + 0.04 * i  # so that points of one ratio can be told apart
plot [0.8:200] x with lines lw 2 lc rgb colour(0) title 'ideal', \
  for [i = 1:words(tokens)] 'measured.csv' using \
    (of('tokens', word(tokens, i), column('top_k') > 0 ? beside(i) * column('flop_ratio') : NaN)): \
    'speedup' with points pt 2 + 2 * i ps 1.2 lw 2 lc rgb colour(i) title plural(word(tokens, i))
