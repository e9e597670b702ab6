"""pythia_core: the small library under the book that re-runs the Pythia paper (Biderman et al.).

Its rooms, each importing only those above it:

    errors      what can go wrong, as one family of exceptions that say what to do
    util        files written wholly or not at all, worker processes, progress, stopping, machine
    config      what a run is: model, data, training, intervention, as small dataclasses
    kernels     the model's operations, one a file, each with its plain-torch reference
    data        from text to tokens, to the order of training, to the batch of step k
    model       GPT-NeoX, from its config
    training    the loop and what makes it exact: schedule, optimizer, checkpoints, runs on disk
    suite       model sizes, the scales of the book, the sixteen runs
    hf          models as `transformers` folders, read and written
    evaluation  what a checkpoint can do: scores, text, memorized rows, its inside
    commands    the library's part of the command line

What the studies do with it is the book's (pythia_book), which is never imported from here.
Importing the package itself is free: nothing heavy is loaded until a module that needs it is.
"""

__version__ = "0.1.0"
