"""The book's part of the command line: studies, models, data, speed, other machines."""
