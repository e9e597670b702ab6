"""One module a study: parameters in, plain pandas tables out. No drawing, no optimizer in here.

A study module offers a frozen dataclass of parameters that refuses bad values, and `run(params)`,
which finds or trains the runs it needs, measures them and returns a `Result`.
"""
