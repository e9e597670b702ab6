"""pythia_core: the small library behind the book that re-runs the Pythia paper (Biderman et al.).

Its modules and subpackages; each imports only from those above it:

    errors      exceptions that say what went wrong and what to do
    util        atomic files and hashes, worker processes, progress, stopping, the machine
    config      the settings of a run: model, data, training, intervention
    kernels     the model's operations, one per file, each with its plain-torch reference
    data        from text to tokens, to the training order, to the batch of step k
    model       GPT-NeoX, built from its config
    training    the loop, schedule, optimizer, checkpoints, runs on disk
    suite       model sizes, scales and the sixteen runs of the suite
    hf          reads and writes models as `transformers` folders
    evaluation  scores, generation, memorization and activations of a checkpoint
    commands    the library's commands for the command line

The studies are in the book (pythia_book), which the library never imports. Heavy dependencies are
imported by the modules that need them, so importing the package is cheap.
"""

import os

__version__ = "0.1.0"

# cuBLAS reads this once, at the first matrix product of a process; without it, results are not
# guaranteed to be bitwise repeatable. It is the default workspace size on Hopper GPUs.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
