"""The study of training speed: measured on this machine's CPU; predicted and measured for a GPU."""
