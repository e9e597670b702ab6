"""The operations of the model, one a file, each with a plain-torch `*_reference` beside it.

The reference is the definition of correct; the function without the suffix is what the model calls
and takes the fastest exact route on the device at hand. `pythia_core.model` calls operations only
through this package.

On a CUDA device with Triton (kernels.gpu) `linear_cross_entropy`, `layer_norm_pair`, `bias_gelu`
and the rotation inside `attention` run as Triton kernels. Attention itself is the library that a
table names by head dim, or torch's choice (attention_libraries); our Triton attention is one of
them. The optimizer's (kernels.adamw) is not the model's and therefore not in the list.
"""

from pythia_core.kernels.attention import attention
from pythia_core.kernels.cross_entropy import linear_cross_entropy
from pythia_core.kernels.dispatch import use_triton
from pythia_core.kernels.gelu import bias_gelu, gelu
from pythia_core.kernels.layer_norm import layer_norm, layer_norm_pair
from pythia_core.kernels.linear import linear
from pythia_core.kernels.rotary import rotary_tables, split_rotated

__all__ = [
    "attention",
    "bias_gelu",
    "gelu",
    "layer_norm",
    "layer_norm_pair",
    "linear",
    "linear_cross_entropy",
    "rotary_tables",
    "split_rotated",
    "use_triton",
]
