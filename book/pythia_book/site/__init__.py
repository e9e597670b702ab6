"""Builds the site: which run each page shows, its directives and roles, and its hooks."""
