"""Has one folder per study, with the study's parameters, measurements, claims and figures."""
