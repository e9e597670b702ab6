"""One folder per study: parameters, measurements, claims and figures; registry finds them."""
