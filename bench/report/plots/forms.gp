# GFLOP/s of the reference layer in each form: colour is the form, dashes are dense.
name = 'forms'; width = 1000; height = 560
load 'style.gp'
forms = ''
stats 'forms.csv' using (forms = with(forms, strcol('form')), 0) nooutput
set logscale xy
set format '%g'
set key maxrows 2
set xlabel 'Tokens'
set ylabel 'GFLOP/s'
set ytics @gflops_tics
set xtics ()
set for [n in tokens] xtics add (n n)
set offsets graph 0.04, graph 0.04, graph 0.06, graph 0.06
set label 'float32 multiply-add roof' at graph 0.01, first fma offset 0,0.7
look = "with linespoints lw 2 ps 1.1 lc rgb colour(i)"
plot for [i = 1:words(forms)] for [kind in 'moe dense'] 'forms.csv' \
    using (of('form', word(forms, i), column('tokens'))):(column(kind.'_gflops')) @look \
    pt (kind eq 'moe' ? 7 : 4) dt 1 + (kind eq 'dense') \
    title (kind eq 'moe' ? 'MoE, ' : 'dense, ').word(forms, i), \
  fma with lines lw 2.5 lc rgb grey notitle
