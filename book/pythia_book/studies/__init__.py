"""One room a study: parameters, measurements, claims and figures in one folder."""
