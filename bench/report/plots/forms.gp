# The reference layer in each form, which is a colour: GFLOP/s, dashed for dense; MB; error of y.
name = 'forms'; width = 1200; height = 520
load 'style.gp'
forms = ''
stats 'forms.csv' using (forms = with(forms, strcol('form')), 0) nooutput
stats 'forms.csv' using (1e-6 * column('bytes')) name 'MB' nooutput
stats 'forms.csv' using 'error' name 'ERROR' nooutput
set multiplot

set lmargin screen 0.06; set rmargin screen 0.56; set bmargin screen 0.12; set tmargin screen 0.84
set key at screen 0.5,0.985 center top maxrows 2
set logscale xy
set format '%g'
set xlabel 'Tokens'
set ylabel 'GFLOP/s'
set ytics @gflops_tics
set xtics ()
set for [n in tokens] xtics add (n n)
set offsets graph 0.04, graph 0.04, graph 0.1, graph 0.06
set label 'float32 multiply-add roof' at graph 0.01, first fma offset 0,0.6
plot for [i = 1:words(forms)] 'forms.csv' \
    using (of('form', word(forms, i), column('tokens'))):'moe_gflops' \
    with linespoints lw 2 ps 1.1 pt 7 lc rgb colour(i) title word(forms, i), \
  keyentry with lines lw 1.5 dt 2 lc rgb grey title 'dense of equal FLOPs', \
  for [i = 1:words(forms)] '' \
    using (of('form', word(forms, i), column('tokens'))):'dense_gflops' \
    with lines lw 1.5 dt 2 lc rgb colour(i) notitle, \
  fma with lines lw 2.5 lc rgb grey notitle
unset label; unset key; unset ylabel; unset tics; unset grid; unset logscale

# Bars from the top down in the order of the forms, their figures behind them.
place(i) = words(forms) + 1 - i
figure(i, value) = of('form', word(forms, i), of('tokens', last(tokens), value))
bars = "for [i = 1:words(forms)] 'forms.csv' using (0):(place(i)):(0):(figure(i, @value)): \
    (place(i) - 0.32):(place(i) + 0.32) with boxxyerror lc rgb colour(i) notitle, \
  for [i = 1:words(forms)] '' using (figure(i, @value)):(place(i)):(sprintf(digits, @value)) \
    with labels left offset 0.4,0 notitle"
set style fill solid 1.0 noborder
set border 2
set offsets 0, 0, 0, 0
set yrange [0.3:words(forms) + 0.7]

set lmargin screen 0.61; set rmargin screen 0.77
set xlabel 'MB of weights'
value = "(1e-6 * column('bytes'))"; digits = '%.3g'
set xrange [0:1.3 * MB_max]
plot @bars

set lmargin screen 0.82; set rmargin screen 0.985
set xlabel 'Relative error of y'
value = "column('error')"; digits = '%.2g'
set xrange [0:1.3 * ERROR_max]
plot @bars
unset multiplot
