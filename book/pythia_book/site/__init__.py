"""Builds the site: chooses the run that each page shows; defines directives, roles and hooks."""
