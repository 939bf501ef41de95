"""Programs in ``benchmarks`` that judge: they must be able to say no."""
