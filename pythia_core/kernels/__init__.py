"""The operations of the model, one per file, each next to its plain-torch `*_reference`.

The reference defines what is correct; the function without the suffix is what the model calls, and
takes the fastest exact path on the device at hand. `pythia_core.model` calls operations only
through this package.

On a CUDA device with Triton (dispatch) `linear_cross_entropy`, `layer_norm_pair`, `bias_gelu` and
the rotation inside `attention` run as Triton kernels. Attention itself is computed by the library
that a table gives for the head dim, or by torch's choice (attention_backends); our Triton attention
is one of them. The optimizer's kernel (adamw) is not part of the model and so not exported here.
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
