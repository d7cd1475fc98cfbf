# Bits per byte of validation text against training FLOPs and against time, a curve for each seed.
name = 'curve'; width = 1200; height = 480
load 'style.gp'
set ylabel 'Validation, bits per byte'
set format x '%.0s %c'
set key top right
set xtics rotate by -45
set multiplot layout 1,2
do for [axis in 'training_flops seconds'] {
  set xlabel axis eq 'seconds' ? 'Seconds of training' : 'Training FLOPs'
  plot for [m in models] for [s in seeds] 'curve.csv' \
    using (of(m, s, column(axis))):'validation_bits' with linespoints pt 7 ps 0.6 lw 2 \
    lc rgb colour(number(m)) title (s eq word(seeds, 1) ? m : '')
}
unset multiplot
