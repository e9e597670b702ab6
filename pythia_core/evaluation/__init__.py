"""What a checkpoint can do: scores, text, memorized rows, and a look inside."""
