"""pythia_core: the small library behind the book that re-runs the Pythia paper (Biderman et al.).

Each module or subpackage imports only from those above it:

    errors      exceptions that say what went wrong and what to do
    util        atomic files and hashes, worker processes, progress, stopping, the machine
    config      the settings of a run (model, data, training, intervention)
    kernels     the model's operations, one per file, each with its reference in plain torch
    data        turns text into tokens, puts them in order, and builds the batch of any step
    model       GPT-NeoX, built from its config
    training    the loop, schedule, optimizer, checkpoints, runs on disk
    suite       model sizes, scales and the sixteen runs of the suite
    hf          reads and writes models as `transformers` folders
    evaluation  scores, generation, memorization and activations of a checkpoint
    commands    the command line
"""

import os

__version__ = "0.1.0"

# cuBLAS reads this once, at the first matrix product of a process; without it, results are not
# guaranteed to be bitwise repeatable. It is the default workspace size on Hopper GPUs.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
