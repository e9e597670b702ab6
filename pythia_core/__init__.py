"""pythia_core: the library behind the book that re-runs the Pythia paper (Biderman et al. 2023).

The package is flat and layered; a lower layer never imports a higher one (tests/test_layers.py):

    6  __main__ -> commands/*  bench  bench_*  bundle*
    6  records  recorded  notebooks  cleaning  figures*  papermill_engine
    5  studies/*  published*  errata*  sweep  budget
    4  train  trainer  evaluate  runs  suite  benchmarks  harness  memorize  arithmetic
    4  definitions  recipe  convert  audit  real_suite  task_metrics  harness_tasks  models
    4  generate  phases  continued*  thin  identity
    3  distributed  checkpoint  hf*  hub  neox_native  metrics  hooks  cost_model  throughput_rows
    3  writer  step
    2  model  optim  intervene  pronouns  corpus*  wheels  items  tasks*  prepare  heldout  dedup*
    2  exposure  equations  row_bytes  terms  ngrams  find_text  memory  loss_scale
    2  pile -> index_maps -> remote_rows  ahead  token_making
    1  kernels/*  tokenizer  tokens  rows -> order
    0  errors  machine  paths  progress  parallel  config  scales  schedule  execution  packing

Importing the package itself is free: nothing heavy is loaded until a module that needs it is.
"""

__version__ = "0.1.0"
