"""The operations of the model, one a file, each with a plain-torch `*_reference` beside it.

The reference is the definition of correct; the function without the suffix is what the model calls
and takes the fastest exact route on the device at hand. `pythia_core.model` calls operations only
through this package.
"""

from pythia_core.kernels.attention import attention
from pythia_core.kernels.cross_entropy import linear_cross_entropy
from pythia_core.kernels.gelu import gelu
from pythia_core.kernels.layer_norm import layer_norm
from pythia_core.kernels.linear import linear
from pythia_core.kernels.rotary import rotary_tables

__all__ = ["attention", "gelu", "layer_norm", "linear", "linear_cross_entropy", "rotary_tables"]
