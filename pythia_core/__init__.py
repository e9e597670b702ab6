"""pythia_core: the small library behind the book that re-runs the Pythia paper (Biderman et al.).

Its rooms; each imports only from those above it:

    errors      one family of exceptions, which say what went wrong and what to do
    util        atomic files and hashes, worker processes, progress, stopping, the machine
    config      what a run is: model, data, training, intervention, as small dataclasses
    kernels     the model's operations, one per file, each with its plain-torch reference
    data        from text to tokens, to the training order, to the batch of step k
    model       GPT-NeoX, built from its config
    training    the loop and what makes it exact: schedule, optimizer, checkpoints, runs on disk
    suite       model sizes, the scales, the sixteen runs
    hf          reads and writes models as `transformers` folders
    evaluation  what a checkpoint can do: scores, generation, memorized rows, activations
    commands    the library's part of the command line

The studies are in the book (pythia_book), which is never imported from here.
Importing the package costs nothing: heavy dependencies load with the module that needs them.
"""

import os

__version__ = "0.1.0"

# cuBLAS reads this once, at a process's first matrix product; without it, it does not promise to
# repeat its bits. It is the workspace size that a Hopper card uses anyway.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
