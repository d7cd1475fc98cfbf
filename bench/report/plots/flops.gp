# FLOPs per token against total parameters: published models, and the layers measured here.
name = 'flops'; width = 1200; height = 560
load 'style.gp'
set logscale xy
set key inside top left maxrows 9
set xlabel 'Total parameters'
set multiplot layout 1,2

families = ''
stats 'models.csv' using (families = with(families, strcol('family')), 0) nooutput
# The label of Qwen3-30B-A3B is 3-30B; it stands above its point if it meets no other there.
less_family(f, m) = m[strlen(f) + (m[strlen(f) + 1:strlen(f) + 1] eq '-' ? 2 : 1):*]
less_active(m) = strstrt(m, '-A') ? m[1:strstrt(m, '-A') - 1] : m
side(m) = m eq 'OLMoE-1B-7B' || m eq 'Qwen1.5-MoE-A2.7B' ? 'left' : \
          m eq 'Qwen3-30B-A3B' ? 'right' : m eq 'DeepSeek-V2-Lite' ? 'below' : 'above'
dx(side) = side eq 'left' ? -4 : side eq 'right' ? 3.3 : 0
dy(side) = side eq 'above' ? 0.9 : side eq 'below' ? -0.9 : 0
set title 'Published models'
set ylabel 'FLOPs per token'
set xtics ('1 B' 1e9, '10 B' 1e10, '100 B' 1e11, '1 T' 1e12)
set ytics ('1 G' 1e9, '10 G' 1e10, '100 G' 1e11, '1 T' 1e12)
plot [3e8:3e12] [2e8:2.5e12] 2 * x with lines lw 2 lc rgb colour(0) \
    title 'dense: every parameter for every token', \
  for [i = 1:words(families)] 'models.csv' \
    using (of('family', word(families, i), column('total_params'))):'flops_per_token' \
    with points pt 7 ps 1.3 lc rgb colour(i) title word(families, i), \
  for [at in 'above below left right'] 'models.csv' \
    using (side(strcol('name')) eq at ? column('total_params') : NaN):'flops_per_token': \
    (less_active(less_family(strcol('family'), strcol('name')))) \
    with labels offset dx(at),dy(at) font ',10' notitle

stats 'measured.csv' using 'd_model' nooutput
set title sprintf('Layers measured here (width %d)', STATS_max)
set ylabel 'FLOPs per token and layer'
set format xy '%.0s %c'
set xtics autofreq
set ytics autofreq
set offsets graph 0.05, graph 0.05, graph 0.1, graph 0.1
plot for [i = 1:words(top_k)] 'measured.csv' using 'total_params': \
  (of_curve(last(tokens), i, column('matmul_flops') / column('tokens'))) @curve
unset multiplot
