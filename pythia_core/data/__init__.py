"""Turn text into tokens, put the tokens in training order, and make the batch of each update."""
