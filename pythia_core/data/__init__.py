"""From text to tokens, to the order of training, to the batch of step k."""
