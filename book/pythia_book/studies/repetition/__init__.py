"""The repetition study: training reads the same data several times, at equal compute."""
