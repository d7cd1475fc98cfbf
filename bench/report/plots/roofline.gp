# Layers under the two roofs: colour is the layer, shape the number of tokens.
name = 'roofline'; width = 1000; height = 620
load 'style.gp'
shown = '"'.word(layers, 1).'"'.coarse.moe(last(experts), word(top_k, 2)).fine
set logscale xy
set format '%g'
set key maxrows 2
set xlabel 'FLOPs per byte of weights and rows'
set ylabel 'GFLOP/s'
set ytics @gflops_tics
set offsets 0, 0, graph 0.08, graph 0.06
set samples 1000
roof(x) = x * read < fma ? x * read : fma
of_layer(i) = of('layer', word(shown, i), column('matmul_flops') / column('bytes'))
set label sprintf('%.0f GB/s read', read) at 0.3 * fma / read,fma / 2 right
set label sprintf('%.0f GFLOP/s multiply-add', fma) at 200,fma offset 0,0.7
plot [0.2:2000] roof(x) with lines lw 2.5 lc rgb grey notitle, \
  for [i = 1:words(shown)] 'measured.csv' using (of_layer(i)):'gflops' \
    with lines lw 1.5 lc rgb colour(i - 1) title word(shown, i), \
  for [i = 1:words(shown)] for [j = 1:words(tokens)] '' \
    using (of('tokens', word(tokens, j), of_layer(i))):'gflops' \
    with points pt 3 + 2 * j ps 1.2 lc rgb colour(i - 1) notitle, \
  for [j = 1:words(tokens)] keyentry with points pt 3 + 2 * j ps 1.2 lc rgb grey \
    title plural(word(tokens, j))
