"""One folder per study, with its parameters, measurements, claims and figures."""
