"""The kernels against the operations they replace."""
