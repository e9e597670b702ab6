"""How fast training is: on this machine's CPU, measured; on a GPU, predicted and measured."""
